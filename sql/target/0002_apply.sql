-- Applying a batch: everything below runs in the one transaction of the request.
--
-- A batch is a header and groups. A group is {"table", "op", "columns"} and a JSON array of its rows (an
-- upsert), of keys (a delete), or of keys to keep (a truncate). Identifiers come from the catalogue and the
-- map, never from the document; values reach SQL as one json parameter.

-- The door's answer: where the target stands, and what more there is to say.
create or replace function outboxd.answer(what text, c outboxd.cursor, more json default null) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select json_strip_nulls(json_build_object('answer', what, 'epoch', (c).epoch, 'batch_no', (c).batch_no, 'digest', (c).digest,
                                            'cursor', (c).cursor::json, 'more', more))
$$;

-- The type below any domains. (Here and below plpgsql: it keeps its plans, where an sql function that cannot be
-- inlined is planned anew with every call, several times for each group of each batch.)
create or replace function outboxd.base_type(of_type oid) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  t record;
begin
  loop
    select typtype, typbasetype into t from pg_type where oid = of_type;
    exit when t.typtype is distinct from 'd';
    of_type := t.typbasetype;
  end loop;
  return of_type;
end
$$;

-- Does a value of this type come as its text (see outbox.travels_as_text on the source)?
create or replace function outboxd.travels_as_text(of_type oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select t.typtype = 'c' or t.typcategory = 'A' or t.oid in ('json'::regtype, 'jsonb'::regtype)
        or exists (select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype)
      from pg_type t where t.oid = outboxd.base_type(of_type));
end
$$;

-- The mirror of a table, or an error whose text names the statement that would allow it.
create or replace function outboxd.mirror_of(name text) returns outboxd.mirror
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  m outboxd.mirror;
begin
  select * into m from outboxd.mirror where table_name = name;
  if not found then
    raise exception '% is not mapped on the target: select outboxd.map(%)', name, quote_literal(name) using errcode = 'OB002';
  elsif to_regclass(format('%I.%I', m.target_schema, m.target_table)) is null then
    raise exception 'the target has no table %.%: create it with the columns of the source', quote_ident(m.target_schema), quote_ident(m.target_table)
      using errcode = 'OB003';
  end if;
  return m;
end
$$;

-- Columns of a mirror as the document's rows are to be read: `x` is json_to_recordset's alias.
create or replace function outboxd.columns_of(m outboxd.mirror, names text[])
returns table (name text, definition text, value text, fixed boolean, generated boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  missing text;
begin
  select string_agg(quote_ident(n), ', ') into missing from unnest(names) n
   where not exists (
     select from pg_attribute a
      where a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
        and a.attname = n and a.attnum > 0 and not a.attisdropped);
  if missing is not null then
    raise exception 'the target table %.% has no column %', quote_ident(m.target_schema), quote_ident(m.target_table), missing
      using errcode = 'OB004';
  end if;
  -- A cast to a type with a length, or to a domain over one, would cut silently; reading and assigning with it
  -- raise instead.
  return query
    select a.attname::text,
           format('%I %s', a.attname, case when t.as_text then 'text' else format_type(a.atttypid, a.atttypmod) end),
           case when t.as_text then format('x.%I::%s', a.attname, format_type(outboxd.base_type(a.atttypid), -1)) else format('x.%I', a.attname) end,
           a.attidentity = 'a',
           a.attgenerated <> ''
      from unnest(names) with ordinality n(name, at)
      join pg_attribute a on a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
                         and a.attname = n.name and a.attnum > 0 and not a.attisdropped
      cross join lateral (select outboxd.travels_as_text(a.atttypid) as as_text) t
     order by n.at;
end
$$;

-- A key that the document spells otherwise (its column was renamed on the source) would be read as null: an
-- upsert would make a new row, a delete would delete nothing, both in silence. Such a batch is refused.
create or replace function outboxd.require_key(m outboxd.mirror, g json, entries json) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  missing text;
begin
  select string_agg(quote_ident(k), ', ') into missing from unnest(m.key_columns) k
   where case when g ->> 'op' = 'upsert' then not exists (select from json_array_elements_text(g -> 'columns') c where c = k)
              else exists (select from json_array_elements(entries) e where e -> k is null) end;
  if missing is not null then
    raise exception 'the changes of % do not have the key of the target table %.%, %: if it was renamed, rename it there and select outboxd.map(%) again',
      m.table_name, quote_ident(m.target_schema), quote_ident(m.target_table), missing, quote_literal(m.table_name) using errcode = 'OB004';
  end if;
end
$$;

-- json_to_recordset over the group's rows ($1), as alias x, with the key columns alone.
create or replace function outboxd.keys_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('json_to_recordset($1) as x(%s)', string_agg(c.definition, ', ')) from outboxd.columns_of(m, m.key_columns) c
$$;

create or replace function outboxd.same_key_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(format('t.%I = %s', c.name, c.value), ' and ') from outboxd.columns_of(m, m.key_columns) c
$$;

-- Insert the group's rows ($1).
create or replace function outboxd.insert_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('insert into %I.%I (%s) overriding system value select %s from json_to_recordset($1) as x(%s)',
                m.target_schema, m.target_table,
                string_agg(quote_ident(c.name), ', ') filter (where not c.generated),
                string_agg(c.value, ', ') filter (where not c.generated),
                string_agg(c.definition, ', '))
    from outboxd.columns_of(m, names) c
$$;

-- Columns of a mirror that the document does not have: their values on the target stay as they are.
create or replace function outboxd.other_columns(m outboxd.mirror, names text[]) returns table (name text, required boolean)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.attname::text, a.attnotnull and not a.atthasdef and a.attidentity = ''
    from pg_attribute a
   where a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and a.attnum > 0 and not a.attisdropped
     and a.attgenerated = '' and a.attname <> all (names)
$$;

-- Gear 1. Postgres checks NOT NULL before it looks for a conflict: where the document lacks a column that a new
-- row would need, rows that are there are updated first and only the others inserted.
create or replace function outboxd.upsert_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when exists (select from outboxd.other_columns(m, names) o where o.required) then
           coalesce(format('with known as (update %I.%I t set %s from json_to_recordset($1) as x(%s) where %s) ', m.target_schema, m.target_table,
                           string_agg(format('%I = %s', c.name, c.value), ', ') filter (where not c.generated and not c.fixed),
                           string_agg(c.definition, ', '), outboxd.same_key_sql(m)), '')
           || outboxd.insert_sql(m, names) || format(' where not exists (select from %I.%I t where %s)', m.target_schema, m.target_table, outboxd.same_key_sql(m))
         else outboxd.insert_sql(m, names) end
      || format(' on conflict (%s) do %s', (select string_agg(quote_ident(k), ', ') from unnest(m.key_columns) k),
           coalesce('update set ' || string_agg(format('%1$I = excluded.%1$I', c.name), ', ')
                                     filter (where not c.generated and not c.fixed), 'nothing'))
    from outboxd.columns_of(m, names) c
$$;

-- Does a row ($1) that is there have another number in an identity column beside the key? UPDATE cannot write
-- one that is GENERATED ALWAYS. Null: the mirror has no such column.
create or replace function outboxd.renumbers_sql(m outboxd.mirror, names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
       select from pg_attribute a
        where a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
          and a.attidentity = 'a' and a.attname = any (names) and a.attname <> all (m.key_columns)) then
    return null;
  end if;
  return (
    select format('select exists (select from %I.%I t join json_to_recordset($1) as x(%s) on %s where %s)', m.target_schema, m.target_table,
                  string_agg(c.definition, ', '), outboxd.same_key_sql(m),
                  string_agg(format('t.%I is distinct from %s', c.name, c.value), ' or ') filter (where c.fixed))
      from outboxd.columns_of(m, names) c);
end
$$;

create or replace function outboxd.delete_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('delete from %I.%I t using %s where %s', m.target_schema, m.target_table, outboxd.keys_sql(m), outboxd.same_key_sql(m))
$$;

-- Gear 2: take rows out and hand them back as text, when the document does not have all of their columns.
create or replace function outboxd.take_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('with taken as (%s returning t) select array_agg(taken.t)::text from taken', outboxd.delete_sql(m))
$$;

create or replace function outboxd.taken_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('unnest($2::%I.%I[]) as t', m.target_schema, m.target_table)
$$;

-- Gear 2: put rows back ($1), with the columns that they do not have as they were in the rows taken out ($2).
create or replace function outboxd.put_back_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('insert into %I.%I (%s, %s) overriding system value select %s, %s from json_to_recordset($1) as x(%s) join %s on %s',
                m.target_schema, m.target_table,
                string_agg(quote_ident(c.name), ', ') filter (where not c.generated), max(o.names),
                string_agg(c.value, ', ') filter (where not c.generated), max(o.kept),
                string_agg(c.definition, ', '), outboxd.taken_sql(m), outboxd.same_key_sql(m))
    from outboxd.columns_of(m, names) c
   cross join (select string_agg(quote_ident(name), ', ') as names, string_agg(format('t.%I', name), ', ') as kept
                 from outboxd.other_columns(m, names)) o
$$;

create or replace function outboxd.put_new_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select outboxd.insert_sql(m, names) || format(' where not exists (select from %s where %s)', outboxd.taken_sql(m), outboxd.same_key_sql(m))
$$;

create or replace function outboxd.truncate_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('delete from %I.%I t where not exists (select from %s where %s)', m.target_schema, m.target_table, outboxd.keys_sql(m), outboxd.same_key_sql(m))
$$;

-- Gear 2 deletes rows that it inserts again: a foreign key that cascades or nulls would destroy others' rows.
create or replace function outboxd.refuse_cascades(tables text[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c record;
begin
  select k.conname, k.conrelid::regclass as child, k.confrelid::regclass as parent into c
    from outboxd.mirror m
    join pg_constraint k on k.contype = 'f' and k.confrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
   where m.table_name = any (tables) and k.confdeltype in ('c', 'n', 'd')
   limit 1;
  if found then
    raise exception 'foreign key % of % deletes or empties rows when rows of % are replaced: recreate it ON DELETE NO ACTION DEFERRABLE',
      c.conname, c.child, c.parent using errcode = 'OB005', constraint = c.conname::text, table = c.child::text;
  end if;
end
$$;

-- What the role that owns the door lacks to write a mirror: the statement that gives it, or null.
create or replace function outboxd.missing_right(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
      when not has_schema_privilege(k.relnamespace, 'usage') then format('grant usage on schema %s to %I', k.relnamespace::regnamespace, current_user)
      when p.missing is not null then format('grant %s on %s to %I', p.missing, k.oid::regclass, current_user)
      when k.relrowsecurity then format('row level security of %s applies to %I: alter role %I bypassrls', k.oid::regclass, current_user, current_user) end
    from outboxd.mirror m
    join pg_class k on k.oid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
   cross join lateral (select string_agg(p, ', ') as missing from unnest(array['select', 'insert', 'update', 'delete']) p
                        where not has_table_privilege(k.oid, p)) p
   where m.table_name = name
$$;

-- The statement without which triggers of a mirror do not find what they name without its schema: they run with
-- the door's own, pinned search_path. Null: no such trigger.
create or replace function outboxd.blind_triggers(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select 'a trigger names something without its schema, which the door does not look into: '
         || string_agg(distinct format('alter function %s set search_path = %I, pg_temp', t.tgfoid::regprocedure, m.target_schema), '; ')
    from outboxd.mirror m
    join pg_trigger t on t.tgrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and not t.tgisinternal and t.tgenabled in ('O', 'A')
    join pg_proc p on p.oid = t.tgfoid
    join pg_language l on l.oid = p.prolang and l.lanname <> 'c'
   where m.table_name = name and not exists (select from unnest(p.proconfig) s where s like 'search_path=%')
$$;

-- Why a batch was refused. Postgres' own texts, and names that a trigger may have made up, can carry values of
-- the row (promise I10): only our own sentences travel, and names that the catalogue knows.
create or replace function outboxd.refused(
  c outboxd.cursor, gear int, at text, state text, message text, schema_name text, table_name text, column_name text, constraint_name text) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select outboxd.answer('refused', c, json_build_object(
      'sqlstate', state, 'gear', gear, 'table', n.name,
      'message', case when state like 'OB%' then message when state = '42501' then outboxd.missing_right(n.name)
                      when state in ('42P01', '42703', '42704', '42883') then outboxd.blind_triggers(n.name) end,
      'constraint', (select k.relname from pg_class k where k.relname = refused.constraint_name and k.relkind in ('i', 'I')
                      union select k.conname from pg_constraint k where k.conname = refused.constraint_name limit 1),
      'column', (select a.attname from pg_attribute a join pg_class k on k.oid = a.attrelid
                  where k.relnamespace::regnamespace::text = quote_ident(refused.schema_name) and k.relname = refused.table_name
                    and a.attname = refused.column_name)))
    from (select coalesce((select m.table_name from outboxd.mirror m
                            where m.target_schema = refused.schema_name and m.target_table = refused.table_name limit 1), at) as name) n
$$;

-- Lead the target from one cursor to the next, or change nothing and say why.
-- Promise I3: of two requests with one epoch and batch_no at most one is applied, because both lock the
-- cursor row first and the second finds batch_no moved on. `duplicate` needs the digest too: a re-planned
-- batch of the same number with other changes must not pass for the one that is stored.
create or replace function outboxd.apply(header json, parts text[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c       outboxd.cursor;
  m       outboxd.mirror;
  g       json;
  names   text[];
  at      text;
  gear    int := 1;
  k       int;
  old     text;
  taken   text[];
  renumbers text;
  renumbered boolean;
  written bigint := 0;
  n       bigint;
  state   text;
  message text;
  wrong_schema     text;
  wrong_table      text;
  wrong_column     text;
  wrong_constraint text;
begin
  select * into c from outboxd.cursor where relay = header ->> 'relay' for update;
  if not found or c.epoch <> (header ->> 'epoch')::bigint then
    return outboxd.answer('fenced', c);
  elsif c.batch_no = (header ->> 'batch_no')::bigint and c.digest = header ->> 'digest' then
    return outboxd.answer('duplicate', c);
  elsif c.batch_no <> (header ->> 'batch_no')::bigint - 1 then
    return outboxd.answer('mismatch', c);
  end if;

  begin
    for i in 2 .. cardinality(parts) by 2 loop
      g := parts[i]::json;
      at := g ->> 'table';
      perform outboxd.require_key(outboxd.mirror_of(at), g, parts[i + 1]::json);
    end loop;
    -- Gear 1: upserts parents first, then deletes children first; the document has that order.
    set constraints all deferred;
    for i in 2 .. cardinality(parts) by 2 loop
      g := parts[i]::json;
      at := g ->> 'table';
      m := outboxd.mirror_of(at);
      names := array(select json_array_elements_text(g -> 'columns'));
      renumbers := case when g ->> 'op' = 'upsert' then outboxd.renumbers_sql(m, names) end;
      if renumbers is not null then
        execute renumbers into strict renumbered using parts[i + 1]::json;
        if renumbered then
          raise unique_violation;  -- gear 2 inserts
        end if;
      end if;
      execute case g ->> 'op'
        when 'upsert' then outboxd.upsert_sql(m, names)
        when 'delete' then outboxd.delete_sql(m)
        else outboxd.truncate_sql(m) end
        using parts[i + 1]::json;
      get diagnostics n = row_count;
      written := written + n;
    end loop;
    at := null;
    set constraints all immediate;
  exception when foreign_key_violation or unique_violation or exclusion_violation or restrict_violation then
    begin
      -- Gear 2: take every touched row out, children first, put the final rows in, check once at the end. A
      -- batch of whole transactions then violates nothing that the source's own state does not.
      gear := 2;
      written := 0;
      perform outboxd.refuse_cascades(array(select parts[i]::json ->> 'table' from generate_series(2, cardinality(parts), 2) i
                                             where parts[i]::json ->> 'op' = 'upsert'));
      set constraints all deferred;
      for k in select i from generate_series(2, cardinality(parts), 2) i order by (parts[i]::json ->> 'rank')::int desc loop
        g := parts[k]::json;
        at := g ->> 'table';
        m := outboxd.mirror_of(at);
        names := array(select json_array_elements_text(g -> 'columns'));
        if g ->> 'op' = 'upsert' and exists (select from outboxd.other_columns(m, names)) then
          execute outboxd.take_sql(m) into strict old using parts[k + 1]::json;
          taken[k] := old;
        else
          execute case when g ->> 'op' = 'truncate' then outboxd.truncate_sql(m) else outboxd.delete_sql(m) end
            using parts[k + 1]::json;
        end if;
      end loop;
      for i in 2 .. cardinality(parts) by 2 loop
        g := parts[i]::json;
        continue when g ->> 'op' <> 'upsert';
        at := g ->> 'table';
        m := outboxd.mirror_of(at);
        names := array(select json_array_elements_text(g -> 'columns'));
        if taken[i] is not null then
          execute outboxd.put_back_sql(m, names) using parts[i + 1]::json, taken[i];
          get diagnostics n = row_count;
          written := written + n;
          execute outboxd.put_new_sql(m, names) using parts[i + 1]::json, taken[i];
        else
          execute outboxd.insert_sql(m, names) using parts[i + 1]::json;
        end if;
        get diagnostics n = row_count;
        written := written + n;
      end loop;
      at := null;
      set constraints all immediate;
    exception when others then
      get stacked diagnostics state = returned_sqlstate, message = message_text, wrong_schema = schema_name,
        wrong_table = table_name, wrong_column = column_name, wrong_constraint = constraint_name;
    end;
  when others then
    get stacked diagnostics state = returned_sqlstate, message = message_text, wrong_schema = schema_name,
      wrong_table = table_name, wrong_column = column_name, wrong_constraint = constraint_name;
  end;

  if state is not null then
    return outboxd.refused(c, gear, at, state, message, wrong_schema, wrong_table, wrong_column, wrong_constraint);
  end if;
  update outboxd.cursor
     set batch_no = (header ->> 'batch_no')::bigint, digest = header ->> 'digest', cursor = (header -> 'cursor')::text, updated_at = now()
   where relay = c.relay
  returning * into c;
  return outboxd.answer('applied', c, json_build_object('gear', gear, 'written', written));
end
$$;
