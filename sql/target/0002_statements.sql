-- The statements that a batch's groups become, composed for one mirror.
--
-- Identifiers come from the catalogue and the map, never from the document; values reach SQL as one json
-- parameter ($1), read by json_to_recordset as alias `x`.

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

-- The table of a mirror, or null. From the catalogue: to_regclass raises where the door may not use the table's schema.
create or replace function outboxd.place_of(m outboxd.mirror) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname = m.target_schema and c.relname = m.target_table);
end
$$;

-- Columns of a mirror's table that outboxd has filled, {"name": number}, as they are called now. A table that was made anew
-- under its name has been filled from the one before: of it those of the same names.
create or replace function outboxd.ours(m outboxd.mirror) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select jsonb_object_agg(a.attname, a.attnum)
                     from outboxd.filled f cross join jsonb_each_text(f.columns) c
                     join pg_attribute a on a.attrelid = f.place and a.attnum = c.value::int and not a.attisdropped
                    where f.place = outboxd.place_of(m)),
                  (select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
                    where a.attrelid = outboxd.place_of(m) and a.attnum > 0 and not a.attisdropped
                      and a.attname in (select jsonb_object_keys(f.columns) from outboxd.filled f
                                         where f.title = format('%I.%I', m.target_schema, m.target_table))), '{}')
$$;

-- Rows with these columns have been written.
create or replace function outboxd.note_filled(relay_name text, m outboxd.mirror, names text[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  called  text := format('%I.%I', m.target_schema, m.target_table);
  there   oid := outboxd.place_of(m);
  written jsonb := (select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
                     where a.attrelid = there and a.attname = any (names) and a.attnum > 0 and not a.attisdropped);
begin
  if exists (select from outboxd.filled f where f.relay = relay_name and f.place = there and f.title = called and f.columns @> written) then
    return;
  end if;
  insert into outboxd.filled as f (relay, place, title, columns) values (relay_name, there, called, outboxd.ours(m) || written)
  on conflict on constraint filled_pkey do update set title = excluded.title, columns = excluded.columns;
  delete from outboxd.filled f where f.relay = relay_name and f.title = called and not exists (select from pg_class c where c.oid = f.place);
end
$$;

-- A group with the columns that its rows set to null because they no longer travel (`vacates`): those that are ours, and may be
-- null: somebody may have them need a value since the relay was told.
create or replace function outboxd.vacating(m outboxd.mirror, g json) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when g -> 'vacates' is null then g else
    (g::jsonb || jsonb_build_object('columns', (g -> 'columns')::jsonb || coalesce((
       select jsonb_agg(a.attname order by a.attnum) from pg_attribute a cross join outboxd.ours(m) o(columns)
        where a.attrelid = outboxd.place_of(m) and a.attnum = (o.columns ->> a.attname::text)::int and not a.attnotnull
          and (g -> 'vacates')::jsonb ? a.attname and not (g -> 'columns')::jsonb ? a.attname), '[]')))::json end
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
  select string_agg(coalesce(quote_ident(n), 'null'), ', ') into missing from unnest(names) n
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

-- Rows that the source tells apart by other columns: two of them would be one here, or one of them two.
create or replace function outboxd.require_same_key(m outboxd.mirror, g json) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  other text;
begin
  select (select string_agg(quote_ident(c), ', ') from unnest(k.key) c) into other
    from json_array_elements(g -> 'keyed') one cross join lateral (select array(select json_array_elements_text(one)) as key) k
   where not (k.key <@ m.key_columns and m.key_columns <@ k.key)
     and m.key_columns <@ case when g ->> 'op' = 'upsert' then array(select json_array_elements_text(g -> 'columns')) else k.key end
   limit 1;
  if other is not null then
    raise exception 'the key of % is (%), and that of the target table %.% is (%): it must be the same', m.table_name, other,
      quote_ident(m.target_schema), quote_ident(m.target_table), (select string_agg(quote_ident(k), ', ') from unnest(m.key_columns) k) using errcode = 'OB004';
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

-- Insert the group's rows ($1). The alias: ON CONFLICT could not tell a table called excluded from its own.
create or replace function outboxd.insert_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('insert into %I.%I as t (%s) overriding system value select %s from json_to_recordset($1) as x(%s)',
                m.target_schema, m.target_table,
                string_agg(quote_ident(c.name), ', ') filter (where not c.generated),
                string_agg(c.value, ', ') filter (where not c.generated),
                string_agg(c.definition, ', '))
    from outboxd.columns_of(m, names) c
$$;

-- Columns of a mirror that the document does not have: their values on the target stay as they are.
create or replace function outboxd.other_columns(m outboxd.mirror, names text[]) returns table (name text, required boolean, fixed boolean)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.attname::text, a.attnotnull and not a.atthasdef and a.attidentity = '', a.attidentity = 'a'
    from pg_attribute a
   where a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and a.attnum > 0 and not a.attisdropped
     and a.attgenerated = '' and a.attname <> all (names)
$$;

-- Are a group's rows such as must not keep what the document lacks of them?
create or replace function outboxd.is_anew(m outboxd.mirror, g json) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select g -> 'anew' is not null and exists (select from outboxd.other_columns(m, array(select json_array_elements_text(g -> 'columns'))))
$$;

-- Key columns in which equal values are the same value: a row that is there has it already, and writing it again would
-- lock the row against the foreign key checks of others. (1.0 and 1.00 are equal numbers, but not the same.)
create or replace function outboxd.settled_keys(m outboxd.mirror) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return array(
    select a.attname::text
      from pg_attribute a left join pg_collation l on l.oid = a.attcollation
     where a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and a.attname = any (m.key_columns)
       and outboxd.base_type(a.atttypid)::regtype = any ('{bool,int2,int4,int8,uuid,date,timestamp,timestamptz,bytea,text,varchar}'::regtype[])
       and coalesce(l.collisdeterministic, true));
end
$$;

-- Gear 1. Postgres checks NOT NULL before it looks for a conflict: where the document lacks a column that a new
-- row would need, rows that are there are updated first and only the others inserted. `anew`: rows that were deleted before;
-- one that is still there becomes what a new one would be, also in the columns that the document lacks.
create or replace function outboxd.upsert_sql(m outboxd.mirror, names text[], anew boolean) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case when not anew and exists (select from outboxd.other_columns(m, names) o where o.required) then
           coalesce(format('with known as (update %I.%I t set %s from json_to_recordset($1) as x(%s) where %s) ', m.target_schema, m.target_table,
                           string_agg(format('%I = %s', c.name, c.value), ', ') filter (where not c.generated and not c.fixed),
                           string_agg(c.definition, ', '), outboxd.same_key_sql(m)), '')
           || outboxd.insert_sql(m, names) || format(' where not exists (select from %I.%I t where %s)', m.target_schema, m.target_table, outboxd.same_key_sql(m))
         else outboxd.insert_sql(m, names) end
      || format(' on conflict (%s) do %s', (select string_agg(quote_ident(k), ', ') from unnest(m.key_columns) k),
           coalesce('update set ' || nullif(concat_ws(', ', string_agg(format('%1$I = excluded.%1$I', c.name), ', ')
                                                       filter (where not c.generated and not c.fixed and c.name <> all (s.keys)),
                                               (select string_agg(format('%1$I = excluded.%1$I', o.name), ', ')
                                                  from outboxd.other_columns(m, names) o where anew and not o.fixed)), ''), 'nothing'))
    from outboxd.columns_of(m, names) c, outboxd.settled_keys(m) s(keys)
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
  select format('with taken as (%s returning (t.*)::%I.%I as whole) select array_agg(taken.whole)::text from taken',
                outboxd.delete_sql(m), m.target_schema, m.target_table)
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

-- Writers: one function for each mirror, kind of group and set of columns, made when such a group first comes.
--
-- Composing a statement from the catalogue and planning it takes longer than writing a row. A writer holds it as SQL
-- of its own, so that a session plans it once; Postgres drops that plan by itself when the table is altered.

-- The statements of a writer that is given a group's rows or keys ($1); null where they are better made anew each
-- time. What looks for rows of the table is planned with every batch: a plan made while it was small would scan it
-- when it is large.
create or replace function outboxd.writer_sql(m outboxd.mirror, op text, names text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if op = 'delete' then
    return format('execute %L using $1; get diagnostics written = row_count;'
                  ' if written < json_array_length($1) and exists (select from %s where %s) then return -1; end if',
                  outboxd.delete_sql(m), outboxd.keys_sql(m), (select string_agg(format('x.%I is null', k), ' or ') from unnest(m.key_columns) k));
  elsif op <> 'upsert' or outboxd.renumbers_sql(m, names) is not null then
    return null;
  elsif exists (select from outboxd.other_columns(m, names) o where o.required) then
    return format('execute %L using $1; get diagnostics written = row_count', outboxd.upsert_sql(m, names, false));
  end if;
  return outboxd.upsert_sql(m, names, false) || '; get diagnostics written = row_count';
end
$$;

-- What a writer would be made of now. Declared immutable, which it is between two changes of the table: a writer calls
-- it with constants, `tbl` among them, so that it is computed when the plan is made and any ALTER TABLE has it
-- computed anew. A check with every batch for the price of none.
create or replace function outboxd.signature(tbl regclass, table_name text, target_schema text, target_table text, key_columns text[], op text, names text[])
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return md5(outboxd.writer_sql(row(table_name, target_schema, target_table, key_columns), op, names));
end
$$;

-- Make a writer, or make it anew. False: it cannot be, or need not; then the statements are composed with every batch.
create or replace function outboxd.make_writer(writer text, m outboxd.mirror, op text, names text[]) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  statements text := outboxd.writer_sql(m, op, names);
  there      text;
  body       text;
  other      text;
begin
  if not pg_try_advisory_xact_lock(1869968482, hashtext(writer)) then
    return false;  -- nobody waits here for another who makes the same
  end if;
  select prosrc into there from pg_proc where pronamespace = 'outboxd'::regnamespace and proname = writer;
  if statements is null then
    execute format('drop function if exists outboxd.%I(json)', writer);
    return false;
  elsif there is null and (
    select count(*) >= 1000 or count(*) filter (where strpos(prosrc, format('outboxd.signature(%L::regclass, %L,', format('%I.%I', m.target_schema, m.target_table), m.table_name)) > 0) >= 150
      from pg_proc where pronamespace = 'outboxd'::regnamespace and starts_with(proname, 'write_')) then
    return false;  -- a source with ever new sets of columns must not fill the catalogue, nor one table take all that others may have
  end if;
  body := format(E'#variable_conflict use_column\ndeclare\n  written bigint;\nbegin\n'
                 '  if outboxd.signature(%L::regclass, %L, %L, %L, %L::text[], %L, %L::text[]) is distinct from %L then return null; end if;\n'
                 '  %s;\n  return written;\nend',
                 format('%I.%I', m.target_schema, m.target_table), m.table_name, m.target_schema, m.target_table, m.key_columns, op, names,
                 md5(statements), statements);
  if body = there then
    return true;
  end if;
  execute format('create or replace function outboxd.%I(json) returns bigint language plpgsql volatile set search_path = pg_catalog, pg_temp as %L', writer, body);
  -- By name as well: a project's default privileges may have granted it to others.
  for other in
    select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
     where p.pronamespace = 'outboxd'::regnamespace and p.proname = writer and a.grantee <> p.proowner
  loop
    execute format('revoke all on function outboxd.%I(json) from %s', writer, other);
  end loop;
  return true;
exception when insufficient_privilege or object_not_in_prerequisite_state or unique_violation or internal_error then
  return false;
end
$$;

-- The writer of a group, made if need be (`afresh`: even if it is there); null: there is none.
create or replace function outboxd.writer_of(m outboxd.mirror, g json, afresh boolean) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  writer text := 'write_' || md5(concat_ws(' ', m, g ->> 'op', g ->> 'columns'));
begin
  if not afresh and to_regprocedure('outboxd.' || writer || '(json)') is not null then
    return writer;
  elsif g ->> 'op' = 'upsert' then
    perform outboxd.require_key(m, g, null);
  end if;
  return case when outboxd.make_writer(writer, m, g ->> 'op', array(select json_array_elements_text(g -> 'columns'))) then writer end;
end
$$;

-- Remove the rows of a group's keys, or, of a truncate, all but those. What a row of another mirror still refers to, by a
-- foreign key that would take that along, is refused as by one without an action; a truncate leaves it.
create or replace function outboxd.remove(m outboxd.mirror, g json, entries json, heads json[], bodies json[]) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  d       record;
  refers  boolean;
  left_by text := '';
  removed bigint;
begin
  perform outboxd.require_key(m, g, entries);
  for d in select * from outboxd.dependents(m, heads) where g ->> 'op' <> 'upsert' loop
    if g ->> 'op' = 'truncate' then
      left_by := left_by || ' and not ' || d.condition;
      continue;
    end if;
    execute format('select exists (select from %I.%I t join %s on %s where %s)', m.target_schema, m.target_table, outboxd.keys_sql(m), outboxd.same_key_sql(m), d.condition)
       into strict refers using entries, bodies;
    if refers then
      raise exception using errcode = 'OB014', constraint = d.name, schema = m.target_schema, table = m.target_table;
    end if;
  end loop;
  execute case when g ->> 'op' = 'truncate' then outboxd.truncate_sql(m) || left_by else outboxd.delete_sql(m) end using entries, bodies;
  get diagnostics removed = row_count;
  return removed;
end
$$;

-- Write a group without a writer.
create or replace function outboxd.write(m outboxd.mirror, g json, entries json) returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  names      text[] := array(select json_array_elements_text(g -> 'columns'));
  renumbers  text;
  renumbered boolean;
  written    bigint;
begin
  perform outboxd.require_key(m, g, entries);
  renumbers := case when g ->> 'op' = 'upsert' then outboxd.renumbers_sql(m, names) end;
  if renumbers is not null then
    execute renumbers into strict renumbered using entries;
    if renumbered then
      raise unique_violation;  -- gear 2 inserts
    end if;
  end if;
  execute case g ->> 'op'
    when 'upsert' then outboxd.upsert_sql(m, names, outboxd.is_anew(m, g))
    when 'delete' then outboxd.delete_sql(m)
    when 'truncate' then outboxd.truncate_sql(m) end
    using entries;
  get diagnostics written = row_count;
  return written;
end
$$;
