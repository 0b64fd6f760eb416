-- Capture: what `outbox.watch` installs on a table, and how a change is written as JSON.
--
-- The triggers take only the *keys* from the transition tables and re-read each row by its key: there =
-- upsert, not there = delete. Copying the transition rows ends with stale rows whenever statements nest on
-- one table (a user's trigger that updates the same row), because the outer statement is recorded last.

-- The type below any domains. (plpgsql keeps its plans for the session: where capture has to compose its SQL,
-- that is ten times quicker than functions in SQL.)
create or replace function outbox.base_type(of_type oid) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid := of_type;
begin
  while (select t.typtype = 'd' from pg_type t where t.oid = base) loop
    base := (select t.typbasetype from pg_type t where t.oid = base);
  end loop;
  return base;
end
$$;

-- json, jsonb, arrays and composites lose something on the way through row_to_json (JSON null, lower bounds): they
-- travel as their text, which loses nothing. So does every type that is not the system's own (16384 is the first
-- oid given to others): row_to_json would call a cast to json that its owner made, today or after `watch`, with the
-- rights of whoever watches.
create or replace function outbox.travels_as_text(of_type oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid := outbox.base_type(of_type);
begin
  return (
    select t.typtype = 'c' or t.typcategory = 'A' or t.oid in ('json'::regtype, 'jsonb'::regtype, 'record'::regtype)
        or t.oid::int8 >= 16384
      from pg_type t where t.oid = base);
end
$$;

-- Names of the columns of `tbl` by their numbers, null for a dropped one. From the catalogue's cache, not by a
-- query: a transaction in REPEATABLE READ that had to wait for an ALTER TABLE writes the new table, but a query
-- shows it the old pg_attribute.
create or replace function outbox.column_names(tbl regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[];
  name  text;
begin
  for n in 1 .. 1600 loop
    name := (pg_identify_object_as_address('pg_class'::regclass, tbl, n)).object_names[3];
    exit when name is null;
    -- A column may have been given such a name by its owner: then it is seen alive under it. (An old snapshot shows a
    -- dropped one alive as well, but under the name that it had.)
    names[n] := case when name <> format('........pg.dropped.%s........', n)
                       or exists (select from pg_attribute a where a.attrelid = tbl and a.attnum = n and a.attname = name and not a.attisdropped)
                     then name end;
  end loop;
  return names;
end
$$;

-- Columns that decide how a table is captured. Declared immutable, which it is between two changes of the
-- table: capture calls it with a regclass constant, so the planner folds it into the cached plan, and any
-- ALTER TABLE invalidates that plan. A check on every statement for the price of none.
create or replace function outbox.signature(tbl regclass) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select md5(string_agg(format('%s %s %s', u.name, a.atttypid::regtype, i.indkey), ',' order by u.n))
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
      left join pg_index i on i.indrelid = tbl and i.indisprimary and a.attnum = any (i.indkey)
     where u.name is not null);
end
$$;

create or replace function outbox.primary_key(tbl regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return (
    select array_agg(names[k.attnum] order by k.n)
      from pg_index i
      cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, n)
     where i.indrelid = tbl and i.indisprimary);
end
$$;

-- Do these columns name one row, at every moment? Not so for a DEFERRABLE key.
create or replace function outbox.is_key(tbl regclass, columns text[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return exists (
       select from pg_index i
        cross join lateral (select array_agg(names[n]) from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) n) k(of_index)
        where i.indrelid = tbl and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
          and k.of_index <@ columns and columns <@ k.of_index)
     and not exists (select from pg_attribute a where a.attrelid = tbl and names[a.attnum] = any (columns) and not a.attnotnull);
end
$$;

-- Can whoever asks still name and read the rows? Declared immutable for the same reason as the signature: a
-- key dropped, an owner changed or a policy forced while the table is watched must not fail the application.
create or replace function outbox.capturable(tbl regclass, keys text[]) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return keys <@ outbox.row_columns(tbl, null, null) and has_table_privilege(tbl, 'select')
     and not row_security_active(tbl) and outbox.is_key(tbl, keys);
end
$$;

-- Columns of `tbl` that travel, in their order.
create or replace function outbox.row_columns(tbl regclass, include text[], exclude text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select array_agg(u.name order by u.n)
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
     where u.name is not null
       and (include is null or u.name = any (include))
       and (exclude is null or u.name <> all (exclude)));
end
$$;

-- SQL that makes the JSON of these columns from alias `t`. Text is what the type itself writes (concat does that):
-- a cast to text may be a function of the table's owner. A column too new to be seen here travels as text, which
-- any type reads.
create or replace function outbox.row_sql(tbl regclass, columns text[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select format('(select row_to_json(x.*)::text from (select %s) x)', string_agg(
             case when a.attnum is null or outbox.travels_as_text(a.atttypid)
                  then format('case when t.%1$I is distinct from null then concat(t.%1$I) end as %1$I', u.name)
                  else format('t.%I', u.name) end, ', ' order by u.n))
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
     where u.name = any (columns));
end
$$;

-- A row whose JSON has more bytes than this is recorded by its key alone. Postgres itself makes none above 1 GB.
create or replace function outbox.row_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 128 * 1024 * 1024;

-- SQL about the sizes of these columns of alias `t`, from what is stored: nothing is detoasted.
--   small   the JSON is nowhere near a limit. At most 128 kB stored, which compression may have made of 32 MB; of types
--           that may write far more than they hold (a jsonb of many 1e131071) 2 kB, and those not compressed
--   bytes   of text in the row: a lower bound of its JSON
--   stored  what the row takes on disk, about
create or replace function outbox.size_sql(
  tbl regclass, columns text[], out small text, out bytes text, out stored text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  sizes  text[];  -- of every column without a fixed length
  wide   text[];  -- of those whose text may be far longer
  packed text[];
  col    text;
  base   regtype;
begin
  bytes := '0';
  for col, base in
    select quote_ident(u.name), outbox.base_type(a.atttypid)
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
     where u.name = any (columns) and coalesce(a.attlen, -1) < 0 order by u.n
  loop
    sizes := sizes || format('pg_column_size(t.%s)', col);
    case
      when base in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) then
        bytes := format('%s + coalesce(octet_length(t.%s), 0)::bigint', bytes, col);
      when base = 'bytea'::regtype then
        bytes := format('%s + 2 * coalesce(octet_length(t.%s), 0)::bigint', bytes, col);
      when base in ('json'::regtype, 'xml'::regtype, 'numeric'::regtype, 'bit'::regtype, 'varbit'::regtype) then
        null;
      else
        wide := wide || format('pg_column_size(t.%s)', col);
        packed := packed || format('pg_column_compression(t.%s)', col);
    end case;
  end loop;
  small := concat_ws(' and ', 'true',
    '(greatest(' || array_to_string(sizes, ', ') || ') > ' || 131072 / cardinality(sizes) || ') is not true',
    '(greatest(' || array_to_string(wide, ', ') || ') > 2000) is not true and num_nonnulls(' || array_to_string(packed, ', ') || ') = 0');
  stored := coalesce((select string_agg(format('coalesce(%s, 0)::bigint', s), ' + ') from unnest(sizes) s), '0');
end
$$;

-- The JSON of the row at `at` in `rel` (a table, or a partition), or null when it is too large: when making it fails, or
-- would take too much to try. The way of the few rows that are not small.
create or replace function outbox.large_row(rel regclass, at tid, row_sql text, bytes_sql text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  made text;
begin
  execute format('select case when %s <= outbox.row_limit() then %s end from only %s t where t.ctid = $1', bytes_sql, row_sql, rel)
     into made using at;
  return case when octet_length(made) <= outbox.row_limit() then made end;
exception
  when program_limit_exceeded or out_of_memory then
    return null;
  when internal_error then
    if sqlerrm like 'invalid memory alloc request size%' then
      return null;
    end if;
    raise;
end
$$;

-- SQL that makes the JSON of the key from an alias. Two spellings of one key must give one text:
-- numeric loses its trailing zeros here, types that cannot be spelled in one way are refused by watch.
create or replace function outbox.key_sql(tbl regclass, columns text[], alias text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return (
    select format('(select row_to_json(x.*)::text from (select %s) x)', string_agg(
             case when outbox.base_type(a.atttypid) = 'numeric'::regtype
                  then format('trim_scale(%1$I.%2$I) as %2$I', alias, k.name)
                  when outbox.travels_as_text(a.atttypid)
                  then format('concat(%1$I.%2$I) as %2$I', alias, k.name)
                  else format('%I.%I', alias, k.name) end, ', ' order by k.n))
      from unnest(columns) with ordinality k(name, n)
      left join pg_attribute a on a.attrelid = tbl and names[a.attnum] = k.name);
end
$$;

-- The statement that records what one statement on `rel` did. `rel` is the watched table or one of its
-- partitions; rows are always re-read from the root, where a row that changed partitions still is.
-- What outbox.watched knows is handed in: an old snapshot may not show that row. `large` calls what makes the JSON
-- of a row that is not small; without it that call is composed, too, and takes longer for each such row.
create or replace function outbox.capture_sql(
  of_table text, key_columns text[], include text[], exclude text[], rel regclass, tg_op text, large text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  root     regclass := coalesce(pg_partition_root(rel), rel);
  namesake regclass := to_regclass(of_table);
  keys     text[] := coalesce(key_columns, outbox.primary_key(root));
  cols     text[];
  names    text;
  touched  text;
  row_sql  text;
  size     record;
  resync   text := format('insert into outbox.change (table_name, op, key) values (%L, ''resync'', ''{}'')', of_table);
begin
  if namesake <> root then
    if exists (select from pg_trigger a join pg_trigger b on b.tgfoid = a.tgfoid and b.tgname = a.tgname
                where a.tgrelid = namesake and b.tgrelid = rel and a.tgname = 'outbox_insert') then
      return 'select where false';  -- a partition that was detached: no row of the watched table any more
    end if;
    return resync;  -- the table was renamed and another has its name: nobody can say whose row this is
  elsif not coalesce(outbox.capturable(root, keys), false) then
    -- The key is gone (renamed, dropped), or the right to read: this statement's rows cannot be named. The
    -- application's statement must not fail for that, and nothing may be skipped silently: the relay stops at this mark.
    return resync;
  end if;

  if tg_op = 'TRUNCATE' then
    if rel = root then
      return format('insert into outbox.change (table_name, op, key) values (%L, ''truncate'', ''{}'')', of_table);
    elsif current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
      return resync;  -- TRUNCATE removes rows that came after this snapshot, too
    end if;
    return format('insert into outbox.change (table_name, op, key) select %L, ''delete'', %s from %s k',
                  of_table, outbox.key_sql(root, keys, 'k'), rel);
  end if;

  cols := outbox.row_columns(root, include, exclude);
  row_sql := outbox.row_sql(root, cols);
  size := outbox.size_sql(root, cols);
  select string_agg(format('k.%I', c), ', ' order by n) into names from unnest(keys) with ordinality u(c, n);
  touched := case tg_op
    when 'INSERT' then format('select %s from new_rows k', names)
    when 'DELETE' then format('select %s from old_rows k', names)
    else format('select %1$s from old_rows k union select %1$s from new_rows k', names) end;
  -- lateral + limit: always one index probe a key. A hash join, cached after one bulk statement, would
  -- scan the whole table for every single-row statement that follows in the session.
  -- age(xmin) <= 0: written by this transaction. A touched key has no other row; but a snapshot of REPEATABLE
  -- READ still shows the row that another transaction deleted before this one wrote the key again.
  return format(
    'insert into outbox.change (table_name, op, shape, key, row, headers)'
    ' select %1$L, case when not %8$s then ''delete'' when j.made is null then ''too_large'' else ''upsert'' end,'
    ' case when j.made is not null then %2$s end, %3$s,'
    ' case when %8$s then coalesce(j.made, concat(''{"stored_bytes":'', %9$s, ''}'')) end,'
    ' nullif(current_setting(''outbox.headers'', true), '''')'
    ' from (%5$s) k left join lateral (select r.*, r.tableoid, r.ctid from %6$s r where %7$s and age(r.xmin) <= 0 limit 1) t on true'
    ' cross join lateral (select case when not %8$s then null when %10$s then %4$s else %11$s end as made offset 0) j',
    of_table, outbox.shape_of(of_table, cols), outbox.key_sql(root, keys, 'k'),
    row_sql, touched, root,
    (select string_agg(format('r.%1$I = k.%1$I', c), ' and ') from unnest(keys) c),
    format('(t.%I is not null)', keys[1]), size.stored, size.small,
    coalesce(large, format('outbox.large_row(t.tableoid, t.ctid, %L, %L)', row_sql, size.bytes)));
end
$$;

-- Does this TRUNCATE trigger have to record anything? TRUNCATE of a partitioned table fires the triggers of its
-- partitions as well, as far as they have any: the one above them has recorded it and says so until the end.
create or replace function outbox.truncates(rel regclass, tg_when text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_when = 'AFTER' then
    perform set_config('outbox.truncating', '', true);
    return false;
  elsif exists (select from pg_partition_ancestors(rel) a where a.relid::oid::text = current_setting('outbox.truncating', true)) then
    return false;
  elsif (select c.relkind = 'p' from pg_class c where c.oid = rel) then
    perform set_config('outbox.truncating', rel::oid::text, true);
  end if;
  return true;
end
$$;

-- outbox.large_row for one table, as static SQL: ten times quicker. Returns how to call it.
create or replace function outbox.compose_large(watched_id int, tbl regclass, columns text[]) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  title text := 'row_' || watched_id;
begin
  execute format(
    'create or replace function outbox.%I(at tid) returns text language plpgsql set search_path = pg_catalog, pg_temp as %L',
    title, format($body$
declare
  made text;
begin
  select case when %s <= outbox.row_limit() then %s end into made from only %s t where t.ctid = at;
  return case when octet_length(made) <= outbox.row_limit() then made end;
exception
  when program_limit_exceeded or out_of_memory then
    return null;
  when internal_error then
    if sqlerrm like 'invalid memory alloc request size%%' then
      return null;
    end if;
    raise;
end
$body$, (outbox.size_sql(tbl, columns)).bytes, outbox.row_sql(tbl, columns), tbl));
  execute format('revoke all on function outbox.%I(tid) from public', title);
  execute format('alter function outbox.%I(tid) owner to %I', title, current_user);
  return format('outbox.%I(t.ctid)', title);
end
$$;

-- (Re)create the capture function of one watched table: static SQL while the table looks as it did when
-- this ran, the same SQL composed afresh when it does not. Never an error for the application.
create or replace function outbox.compose_capture(watched_id int, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  w       outbox.watched;
  schema  name;
  title   name;
  compose text;
  body    text;
  large   text;
begin
  select * into strict w from outbox.watched where id = watched_id;
  select n.nspname, c.relname into schema, title
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = tbl;
  if (select c.relkind = 'r' from pg_class c where c.oid = tbl) then
    large := outbox.compose_large(watched_id, tbl, outbox.row_columns(tbl, w.include, w.exclude));
  end if;
  compose := format('outbox.capture_sql(%L, %L, %L, %L', w.table_name, w.key_columns, w.include, w.exclude);
  body := format($body$
declare
  captured bigint := 0;
  as_known boolean := false;
begin
  if tg_op = 'TRUNCATE' then
    if not outbox.truncates(tg_relid, tg_when) then
      return null;
    end if;
  elsif tg_table_name = %1$L and tg_table_schema = %2$L or pg_partition_root(tg_relid) = to_regclass(%3$L) then
    as_known := outbox.signature(%3$L::regclass) = %4$L and outbox.capturable(%3$L::regclass, %5$L::text[]);
  end if;
  if as_known then
    if tg_op = 'INSERT' then
      %6$s;
    elsif tg_op = 'UPDATE' then
      %7$s;
    else
      %8$s;
    end if;
  else
    execute %9$s, tg_relid, tg_op);
  end if;
  get diagnostics captured = row_count;
  if captured > 0 and not pg_try_advisory_xact_lock_shared(1869968482, 1) and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('outbox', '');
  end if;
  return null;
end
$body$, title, schema, tbl::text, outbox.signature(tbl), coalesce(w.key_columns, outbox.primary_key(tbl)),
    outbox.capture_sql(w.table_name, w.key_columns, w.include, w.exclude, tbl, 'INSERT', large),
    outbox.capture_sql(w.table_name, w.key_columns, w.include, w.exclude, tbl, 'UPDATE', large),
    outbox.capture_sql(w.table_name, w.key_columns, w.include, w.exclude, tbl, 'DELETE', large), compose);
  -- row_security = off: a policy must raise an error here, never hide a row. enable_seqscan = off: a plan
  -- made while the table was small must not scan it when it is large. The rest pins how values are spelled.
  execute format(
    'create or replace function outbox.%I() returns trigger language plpgsql security definer'
    ' set search_path = pg_catalog, pg_temp set row_security = off set enable_seqscan = off'
    ' set datestyle = ''ISO, YMD'' set timezone = ''UTC'' set intervalstyle = ''iso_8601'''
    ' set extra_float_digits = 1 set bytea_output = ''hex'' set lc_monetary = ''C'' as %L',
    'capture_' || watched_id, body);
  execute format('revoke all on function outbox.%I() from public', 'capture_' || watched_id);
  -- Whoever watches last is who can read the table now.
  execute format('alter function outbox.%I() owner to %I', 'capture_' || watched_id, current_user);
end
$$;
