-- Applying a batch: everything below runs in the one transaction of the request.
--
-- A batch is a header and groups. A group is {"table", "op", "columns"} and a JSON array of its rows (an
-- upsert), of keys (a delete), or of keys to keep (a truncate). Identifiers come from the catalogue and the
-- map, never from the document; values reach SQL as one json parameter.

-- Does a value of this type come as its text (see outbox.travels_as_text on the source)?
create or replace function outboxd.travels_as_text(of_type oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive down as (
    select t.* from pg_type t where t.oid = of_type
    union all
    select t.* from down d join pg_type t on t.oid = d.typbasetype where d.typtype = 'd'
  )
  select t.typtype = 'c' or t.typcategory = 'A' or t.oid in ('json'::regtype, 'jsonb'::regtype)
      or exists (select from pg_cast c where c.castsource = t.oid and c.casttarget = 'json'::regtype)
    from down t where t.typtype <> 'd'
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
    raise exception 'the target has no table %.%', quote_ident(m.target_schema), quote_ident(m.target_table) using errcode = 'OB003';
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
  -- A cast to a type with a length would cut silently; reading and assigning with it raise instead.
  return query
    select a.attname::text,
           format('%I %s', a.attname, case when t.as_text then 'text' else format_type(a.atttypid, a.atttypmod) end),
           case when t.as_text then format('x.%I::%s', a.attname, format_type(a.atttypid, -1)) else format('x.%I', a.attname) end,
           a.attidentity = 'a',
           a.attgenerated <> ''
      from unnest(names) with ordinality n(name, at)
      join pg_attribute a on a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
                         and a.attname = n.name and a.attnum > 0 and not a.attisdropped
      cross join lateral (select outboxd.travels_as_text(a.atttypid) as as_text) t
     order by n.at;
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

create or replace function outboxd.upsert_sql(m outboxd.mirror, names text[], replace boolean) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('insert into %I.%I (%s) overriding system value select %s from json_to_recordset($1) as x(%s)',
                m.target_schema, m.target_table,
                string_agg(quote_ident(c.name), ', ') filter (where not c.generated),
                string_agg(c.value, ', ') filter (where not c.generated),
                string_agg(c.definition, ', '))
      || case when replace then '' else format(' on conflict (%s) do %s',
           (select string_agg(quote_ident(k), ', ') from unnest(m.key_columns) k),
           coalesce('update set ' || string_agg(format('%1$I = excluded.%1$I', c.name), ', ')
                                     filter (where not c.generated and not c.fixed), 'nothing')) end
    from outboxd.columns_of(m, names) c
$$;

create or replace function outboxd.delete_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('delete from %I.%I t using %s where %s', m.target_schema, m.target_table, outboxd.keys_sql(m), outboxd.same_key_sql(m))
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
  at      text;
  gear    int := 1;
  written bigint := 0;
  n       bigint;
  state   text;
  wrong   text;
  wrong_table text;
  wrong_column text;
  message text;
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
    -- Gear 1: upserts parents first, then deletes children first; the document has that order.
    set constraints all deferred;
    for i in 2 .. cardinality(parts) by 2 loop
      g := parts[i]::json;
      at := g ->> 'table';
      m := outboxd.mirror_of(at);
      execute case g ->> 'op'
        when 'upsert' then outboxd.upsert_sql(m, array(select json_array_elements_text(g -> 'columns')), false)
        when 'delete' then outboxd.delete_sql(m)
        else outboxd.truncate_sql(m) end
        using parts[i + 1]::json;
      get diagnostics n = row_count;
      written := written + n;
    end loop;
    set constraints all immediate;
  exception when integrity_constraint_violation then
    begin
      -- Gear 2: take every touched row out, put the final rows in, check once at the end. A batch of whole
      -- transactions then violates nothing that the source's own state does not.
      gear := 2;
      written := 0;
      perform outboxd.refuse_cascades(array(select parts[i]::json ->> 'table' from generate_series(2, cardinality(parts), 2) i));
      set constraints all deferred;
      for i in reverse cardinality(parts) - 1 .. 2 by 2 loop
        g := parts[i]::json;
        at := g ->> 'table';
        m := outboxd.mirror_of(at);
        execute case when g ->> 'op' = 'truncate' then outboxd.truncate_sql(m) else outboxd.delete_sql(m) end
          using parts[i + 1]::json;
      end loop;
      for i in 2 .. cardinality(parts) by 2 loop
        g := parts[i]::json;
        continue when g ->> 'op' <> 'upsert';
        at := g ->> 'table';
        m := outboxd.mirror_of(at);
        execute outboxd.upsert_sql(m, array(select json_array_elements_text(g -> 'columns')), true) using parts[i + 1]::json;
        get diagnostics n = row_count;
        written := written + n;
      end loop;
      set constraints all immediate;
    exception when others then
      get stacked diagnostics state = returned_sqlstate, wrong = constraint_name, wrong_table = table_name,
        wrong_column = column_name, message = message_text;
    end;
  when others then
    get stacked diagnostics state = returned_sqlstate, wrong = constraint_name, wrong_table = table_name,
      wrong_column = column_name, message = message_text;
  end;

  if state is not null then
    -- Postgres' own message may carry values of the row: names travel, that text does not (promise I10),
    -- except where it speaks of privileges and objects, or is one of ours.
    return outboxd.answer('refused', c, json_build_object(
      'sqlstate', state, 'table', at, 'constraint', nullif(wrong, ''), 'column', nullif(wrong_column, ''),
      'message', case when state like 'OB%' or state like '42%' then message end, 'gear', gear));
  end if;
  update outboxd.cursor
     set batch_no = (header ->> 'batch_no')::bigint, digest = header ->> 'digest', cursor = (header -> 'cursor')::text, updated_at = now()
   where relay = c.relay
  returning * into c;
  return outboxd.answer('applied', c, json_build_object('gear', gear, 'written', written));
end
$$;

create or replace function outboxd.answer(what text, c outboxd.cursor, more json default null) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select json_strip_nulls(json_build_object('answer', what, 'epoch', (c).epoch, 'batch_no', (c).batch_no, 'digest', (c).digest,
                                            'cursor', (c).cursor::json, 'more', more))
$$;
