-- Copying a table as of a snapshot: who wants it, and reading its rows range by range.
--
-- A range is read in the transaction in which the end of a window is taken (sql/queries/window_copy.sql), so its rows
-- are the state that the window leads to. Ranges follow the order of the key's own index, here and nowhere else: the
-- target may sort otherwise.

-- What is wanted, the newest wish of each table. The target keeps the number of the one that it has fulfilled.
create sequence if not exists outbox.wish_seq as bigint;

create table if not exists outbox.copy (
  table_name text primary key,
  wish       bigint not null default nextval('outbox.wish_seq'),
  prune      boolean not null,
  restart    boolean not null,
  asked_at   timestamptz not null default clock_timestamp()
);

comment on table outbox.copy is 'Tables that are to be brought over as a whole: newly watched ones with rows, `outboxd backfill`; the relay does it';

alter sequence outbox.wish_seq owned by outbox.copy.wish;

-- How a table looked when it was watched, as far as its rows may have got other values without a statement that fires
-- a trigger: see outbox.notice.
alter table outbox.watched add column if not exists layout jsonb;

-- Ask the relay to copy a watched table; returns the number of the wish. `prune`: rows of the target that the source
-- does not have are deleted. `restart`: a copy that is under way begins anew.
create or replace function outbox.ask_copy(table_name text, prune boolean default false, restart boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched := outbox.known(table_name);
  n bigint;
begin
  if not w.capture then
    raise exception '% is emitted by the application: its rows are not known here, so there is nothing to copy', w.table_name
      using errcode = 'invalid_parameter_value';
  end if;
  insert into outbox.copy as c (table_name, prune, restart) values (w.table_name, ask_copy.prune, ask_copy.restart)
  on conflict on constraint copy_pkey do update
     set wish = excluded.wish, prune = excluded.prune, restart = excluded.restart, asked_at = excluded.asked_at
  returning wish into n;
  perform outbox.ring();
  return n;
end
$$;

-- The key's columns in the order of the index that holds it, and alias `t`'s expressions for them in that index' own
-- collations: only so can the index give the next rows.
create or replace function outbox.range_order(tbl regclass, keys text[], out names text[], out ordered text[])
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  columns text[] := outbox.column_names(tbl);
begin
  select array_agg(columns[k.attnum] order by k.n),
         array_agg(format('t.%I', columns[k.attnum])
                   || case when k.coll <> 0 and k.coll <> a.attcollation
                           then (select format(' collate %I.%I', l.collnamespace::regnamespace, l.collname) from pg_collation l where l.oid = k.coll)
                           else '' end order by k.n)
    into names, ordered
    from (select i.indexrelid from pg_index i
           cross join lateral (select array_agg(columns[n]) from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) n) k(of_index)
           where i.indrelid = tbl and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
             and k.of_index <@ keys and keys <@ k.of_index
           order by i.indisprimary desc, i.indexrelid limit 1) chosen
    join pg_index i on i.indexrelid = chosen.indexrelid
   cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indcollation::oid[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, coll, n)
    join pg_attribute a on a.attrelid = tbl and a.attnum = k.attnum;
end
$$;

-- How a watched table's rows are recorded, as SQL over alias t: what outbox.change.key and row would be, and which rows
-- travel. (0009 puts one in its place that knows of mappings.)
create or replace function outbox.projection(watched_id int, out columns text[], out key_sql text, out row_sql text, out condition_sql text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  w   outbox.watched;
  tbl regclass;
begin
  select * into strict w from outbox.watched where id = watched_id;
  tbl := to_regclass(w.table_name);
  columns := outbox.row_columns(tbl, w.include, w.exclude);
  key_sql := outbox.key_sql(tbl, coalesce(w.key_columns, outbox.primary_key(tbl)), 't');
  row_sql := outbox.row_sql(tbl, columns);
  condition_sql := 'true';
end
$$;

-- A watched table and its key, as the statements below need them: json_to_record's definition of a key as
-- outbox.change has it (record), and which row t is that of key k (same).
create or replace function outbox.keyed(w outbox.watched, out tbl regclass, out keys text[], out titles text[], out record text, out same text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  tbl := to_regclass(w.table_name);
  keys := coalesce(w.key_columns, outbox.primary_key(tbl));
  if not coalesce(outbox.capturable(tbl, keys), false) then
    raise exception 'the rows of % cannot be named or read any more: `outboxd check` says why', w.table_name using errcode = 'OB007';
  end if;
  select array_agg(coalesce(to_jsonb(w) -> 'mapping' -> 'rename' ->> k.name, k.name) order by k.n) into titles
    from unnest(keys) with ordinality k(name, n);
  select string_agg(format('%I %s', k.title, format_type(a.atttypid, a.atttypmod)), ', '), string_agg(format('t.%I = k.%I', k.name, k.title), ' and ')
    into record, same
    from unnest(keys, titles) k(name, title) join pg_attribute a on a.attrelid = tbl and a.attname = k.name and a.attnum > 0;
end
$$;

-- The statement that reads the next rows behind a key ($1, as outbox.change has it; `first`: there is none): at most $2,
-- as (key, made: the row, size: its bytes, inside: does it travel?, o1 …: its order). The JSON is made by what capture
-- makes it with. Rows that a filter leaves out are counted, too: where few rows travel, looking for them must not take
-- longer than a turn may. Nothing that gives one row only stands beside the table: the index' order would be lost to a sort.
create or replace function outbox.range_sql(w outbox.watched, k record, p record, first boolean) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  size    record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude));
  way     record := outbox.range_order(k.tbl, k.keys);
  ordered text := array_to_string(way.ordered, ', ');
  inside  text := case when p.condition_sql <> 'true' then format(' cross join lateral (select %s as inside offset 0) i', p.condition_sql) else '' end;
begin
  return format(
    'select %1$s as key, r.made, coalesce(octet_length(r.made), %2$s) as size, %3$s as inside, %4$s'
    ' from (select t.*, t.tableoid, t.ctid from %5$s t%6$s order by %7$s limit $2) t%8$s'
    ' cross join lateral (select case when not %3$s then null when %9$s then %10$s else outbox.large_row(t.tableoid, t.ctid, %10$L, %11$L) end as made offset 0) r'
    ' order by %7$s',
    p.key_sql, size.stored, case when inside = '' then 'true' else 'i.inside' end,
    (select string_agg(format('%s as o%s', u.way, u.n), ', ' order by u.n) from unnest(way.ordered) with ordinality u(way, n)), k.tbl,
    case when first then '' else format(' where (%s) > (select %s from json_to_record($1::json) as k(%s))', ordered, (
      select string_agg(format('k.%I', k.titles[array_position(k.keys, c)]), ', ' order by n) from unnest(way.names) with ordinality u(c, n)), k.record) end,
    ordered, inside, size.small, p.row_sql, size.bytes);
end
$$;

-- The statement that records the row of a key ($1) as changed, as it is, in its lock; one of more than $2 bytes (0: any)
-- as too large: it could not be sent, and many of them would fill the outbox.
create or replace function outbox.touch_sql(w outbox.watched, k record, p record) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  size record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude));
begin
  return format(
    'insert into outbox.change (table_name, op, shape, key, row)'
    ' select %L, case when r.sent is null then ''too_large'' else ''upsert'' end, case when r.sent is not null then %s end, %s,'
    ' coalesce(r.sent, concat(''{"stored_bytes":'', %s, ''}''))'
    ' from json_to_record($1::json) as k(%s)'
    ' cross join lateral (select t.*, t.tableoid, t.ctid from %s t where %s and %s for share of t) t'
    ' cross join lateral (select case when %s then %s else outbox.large_row(t.tableoid, t.ctid, %L, %L) end as made offset 0) m'
    ' cross join lateral (select case when $2 = 0 or octet_length(m.made) <= $2 then m.made end as sent) r',
    w.table_name, outbox.shape_of(w.table_name, p.columns), p.key_sql, size.stored, k.record, k.tbl, k.same, p.condition_sql,
    size.small, p.row_sql, p.row_sql, size.bytes);
end
$$;

-- These keys, null in place of those that are no values of the key's types here: the target's types may hold more, and
-- no row here has such a key.
create or replace function outbox.readable_keys(keys text[], record text) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  reads text := format('select count(*) from unnest($1) u(key) cross join lateral json_to_record(u.key::json) as k(%s)', record);
begin
  execute reads using keys;
  return keys;
exception when data_exception or integrity_constraint_violation then
  for i in 1 .. cardinality(keys) loop
    begin
      execute reads using keys[i : i];
    exception when data_exception or integrity_constraint_violation then
      keys[i] := null;
    end;
  end loop;
  return keys;
end
$$;

-- The statement that reads the rows of keys ($1, an array of them as outbox.change has it; $2: those that can be read), as
-- range_sql does; -1 bytes: there is no such row.
create or replace function outbox.these_sql(w outbox.watched, k record, p record) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  size record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude));
begin
  return format(
    'select u.key, r.made, case when t.ctid is null then -1 else coalesce(octet_length(r.made), %1$s) end as size, true as inside, u.n as o1'
    ' from unnest($1, $2) with ordinality u(key, readable, n) left join lateral json_to_record(u.readable::json) as k(%2$s) on true'
    ' left join lateral (select t.*, t.tableoid, t.ctid from %3$s t where %4$s and %5$s limit 1) t on true'
    ' cross join lateral (select case when t.ctid is null then null when %6$s then %7$s else outbox.large_row(t.tableoid, t.ctid, %7$L, %8$L) end as made offset 0) r'
    ' order by u.n',
    size.stored, k.record, k.tbl, k.same, p.condition_sql, size.small, p.row_sql, size.bytes);
end
$$;

-- The statement that answers with what `given` (range_sql, these_sql) reads, joined in its order: per piece the keys, the
-- rows (or their digests; of one above $4 bytes none), eight bytes of each row's size, do they travel?, how many they are,
-- how many bytes were fetched, and the key of the `most`th row, if it is here. As many rows as $3 bytes reach.
-- A piece is of 256 rows at most, and of one kind; between its texts lies U+001D, which JSON cannot have.
--
-- Nothing is made beyond the row that fills those bytes, however large it would be: a count never falls, so Postgres stops
-- reading at the first row that is `beyond` (the "run condition" of a window). A sum alone would have all of them made.
create or replace function outbox.pieces_sql(given text, by int, digests boolean, most int) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  way text := (select string_agg('o' || n, ', ' order by n) from generate_series(1, by) n);
begin
  return format(
    'select string_agg(key, e''\x1d'' order by n), string_agg(body, e''\x1d'' order by n), string_agg(int8send(size), '''' order by n),'
    ' inside, count(*), sum(counts), max(key) filter (where n = %1$s)'
    ' from (select *, count(case when fetched - counts >= $3 then 1 end) over w as beyond'
    ' from (select *, sum(counts) over w as fetched, row_number() over w as n from (select %2$s, * from (%3$s) r) r'
    ' window w as (order by %4$s rows unbounded preceding)) r'
    ' window w as (order by %4$s rows unbounded preceding)) r'
    ' where beyond < 1 group by (n - 1) >> 8, inside, body is null, size < 0 order by max(n)',
    most, case when digests then 'md5(made) as body' else 'case when size <= $4 then made end as body' end
          || ', case when inside then greatest(0, least(size, 2147483647))::int else 0 end as counts',
    given, way);
end
$$;

-- Was the table, or a partition, written anew since this snapshot was taken (TRUNCATE, ALTER TABLE)? An older snapshot
-- then sees it empty. To be asked once it has been read: until this transaction ends that cannot happen any more.
create or replace function outbox.rewritten(tbl regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from (select tbl as relid union select p.relid from pg_partition_tree(tbl) p) r
      left join pg_class c on c.oid = r.relid
     where coalesce(c.relfilenode, 0) <> coalesce(pg_relation_filenode(r.relid), 0))
$$;

-- What the function below does, with the rights of whoever owns it: in pieces, of which each is joined as pieces_sql
-- says, and all of which have the table's columns. `what`:
--   rows     the next rows behind keys[1], of at most `most` that are looked at, and about `max_bytes`; those above
--            `row_bytes` without their JSON. Size -2: no row, but the key up to which was looked, and there may be more
--   digests  the same, with the MD5 of each row's JSON in its place
--   these    the rows of these keys, as far as `max_bytes` reach; size -1: there is none
--   missing  of these keys those that no row has, spelled as they are here
--   touch    record the rows of these keys as changed, as they are, without the JSON of those above `row_bytes`: in their locks, so that per key the order of ids
--            stays the order of commits (docs/decisions/0016)
create or replace function outbox.copy_work(watched_id int, what text, keys text[], most int, max_bytes bigint, row_bytes bigint)
returns table (columns text[], named text, texts text, sizes bytea)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  w      outbox.watched;
  k      record;
  p      record;
  one    text;
  inside boolean;
  many   bigint;  -- rows of a piece
  bytes  bigint;  -- of them that were fetched
  given  bigint := 0;
  looked bigint := 0;
  total  bigint := 0;
begin
  select * into strict w from outbox.watched where id = watched_id;
  k := outbox.keyed(w);
  p := outbox.projection(watched_id);
  columns := p.columns;
  case what
    when 'rows', 'digests' then
      for named, texts, sizes, inside, many, bytes, one in
        execute outbox.pieces_sql(outbox.range_sql(w, k, p, keys is null), cardinality(k.keys), what = 'digests', most) using keys[1], most, greatest(max_bytes, 1), row_bytes
      loop
        looked := looked + many;
        total := total + bytes;
        if inside then
          given := given + many;
          return next;
        end if;
      end loop;
      if looked = most and given < looked and total < max_bytes then
        named := one; texts := null; sizes := int8send(-2);
        return next;
      elsif given = 0 then  -- no row, but its columns
        named := null; texts := null; sizes := null;
        return next;
      end if;
    when 'these' then
      for named, texts, sizes in
        execute outbox.pieces_sql(outbox.these_sql(w, k, p), 1, false, 0) using keys, outbox.readable_keys(keys, k.record), greatest(max_bytes, 1), row_bytes
      loop
        return next;
      end loop;
    when 'missing' then
      return query execute format(
        'select null::text[], string_agg(case when x.readable is null then x.key else %s end, e''\x1d'' order by x.n), null::text, null::bytea'
        ' from unnest($1, $2) with ordinality x(key, readable, n) left join lateral json_to_record(x.readable::json) as k(%s) on true'
        ' cross join lateral (select %s) t'
        ' where not exists (select from %s t where %s and %s)',
        p.key_sql, k.record, (select string_agg(format('k.%I as %I', u.title, u.name), ', ') from unnest(k.titles, k.keys) u(title, name)),
        k.tbl, k.same, p.condition_sql) using keys, outbox.readable_keys(keys, k.record);
    when 'touch' then
      foreach one in array array_remove(outbox.readable_keys(keys, k.record), null) loop
        execute outbox.touch_sql(w, k, p) using one, row_bytes;
      end loop;
  end case;
  if outbox.rewritten(k.tbl) then
    raise exception '% is being altered: its rows are read again', w.table_name using errcode = 'serialization_failure';
  end if;
end
$$;

-- The door to the work above, of one watched table: it reads with the rights of whoever watched it.
create or replace function outbox.compose_copy(watched_id int) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  title text := 'copy_' || watched_id;
begin
  -- The index gives the next rows in order: a plan that reads all of them and sorts would do so for each range. What is
  -- switched off seems dear, and would have each range compiled.
  execute format(
    'create or replace function outbox.%I(what text, keys text[], most int, max_bytes bigint, row_bytes bigint)'
    ' returns table (columns text[], named text, texts text, sizes bytea) language sql volatile security definer'
    ' set search_path = pg_catalog, pg_temp set row_security = off'
    ' set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off%s'
    ' as ''select * from outbox.copy_work(%s, $1, $2, $3, $4, $5)''',
    title,
    (select string_agg(format(' set %s = %L', p.name, p.setting), '') from (
       select pins.setting, lag(pins.setting) over (order by n) as name, n
         from unnest(outbox.spelling()) with ordinality pins(setting, n)) p where p.n % 2 = 0),
    watched_id);
  execute format('revoke all on function outbox.%I(text, text[], int, bigint, bigint) from public', title);
  execute format('alter function outbox.%I(text, text[], int, bigint, bigint) owner to %I', title, current_user);
  execute format('grant execute on function outbox.%I(text, text[], int, bigint, bigint) to %I', title,
                 (select p.proowner::regrole::name from pg_proc p where p.oid = 'outbox.ask_copy(text, boolean, boolean)'::regprocedure));
end
$$;

-- What the relay calls: see outbox.copy_work.
create or replace function outbox.copy_of(
  table_name text, what text, keys text[], most int default 0, max_bytes bigint default 0, row_bytes bigint default 0)
returns table (columns text[], named text, texts text, sizes bytea)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched := outbox.known(table_name);
begin
  if to_regprocedure(format('outbox.%I(text, text[], int, bigint, bigint)', 'copy_' || w.id)) is null then
    raise exception '% cannot be copied: run `outboxd watch %` again', w.table_name, w.table_name using errcode = 'OB007';
  end if;
  return query execute format('select * from outbox.%I($1, $2, $3, $4, $5)', 'copy_' || w.id) using what, keys, most, max_bytes, row_bytes;
end
$$;

-- Of these tables: can the rows be captured and read as the table is now (null: yes), and which columns travel?
create or replace function outbox.fit_of(tables text[]) returns table (table_name text, unfit text, columns text[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched;
begin
  for w in select * from outbox.watched o where o.table_name = any (tables) loop
    table_name := w.table_name;
    unfit := null;
    columns := null;
    begin
      if to_regclass(w.table_name) is null then
        unfit := format('the source has no table %s any more', w.table_name);
      else
        unfit := outbox.unfit(to_regclass(w.table_name), coalesce(w.key_columns, outbox.primary_key(to_regclass(w.table_name))), w.include, w.exclude,
                              (select coalesce(min(p.proowner::regrole::name), current_user) from pg_proc p
                                where p.pronamespace = 'outbox'::regnamespace and p.proname = 'capture_' || w.id));
        columns := case when unfit is null then (outbox.projection(w.id)).columns end;
      end if;
    exception when others then
      unfit := sqlerrm;  -- ours: it names no value
    end;
    return next;
  end loop;
end
$$;

-- What of a table decides which values its rows have, beside statements: the columns that travel, by their numbers, and
-- the tables that hold the rows.
create or replace function outbox.layout_of(w outbox.watched) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'columns', (select jsonb_object_agg(a.attnum, jsonb_build_array(a.attname, format_type(a.atttypid, a.atttypmod)))
                  from pg_attribute a
                 where a.attrelid = t.tbl and a.attname = any (outbox.row_columns(t.tbl, w.include, w.exclude)) and a.attnum > 0),
    'parts', (select jsonb_agg(r.relid::oid::int8 order by r.relid::oid)
                from (select t.tbl as relid where (select relkind from pg_class where oid = t.tbl) <> 'p'
                      union select p.relid from pg_partition_tree(t.tbl) p where p.isleaf) r))
    from (select to_regclass(w.table_name) as tbl) t
$$;

-- Which watched tables have rows that were given values, or have left, without a statement that fires a trigger: a
-- column added with a default, renamed, of another type; a partition detached or dropped; the table itself made anew.
-- They are to be copied again. (What no catalogue shows is not noticed: ALTER … TYPE to the same type USING another value.)
create or replace function outbox.notice(of_table text default null) returns setof text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w      outbox.watched;
  layout jsonb;
  given  boolean;
  left_  boolean;
begin
  for w in
    select * from outbox.watched k
     where k.capture and (of_table is null or k.table_name = of_table) and to_regclass(k.table_name) is not null
     order by k.id
  loop
    layout := outbox.layout_of(w);
    continue when layout = w.layout;
    perform from outbox.watched k where k.id = w.id and k.layout is not distinct from w.layout for update skip locked;
    continue when not found;
    if w.layout is not null then
      select coalesce(bool_or(case when w.layout -> 'columns' ? c.key then w.layout -> 'columns' -> c.key <> c.value
                                   else a.atthasdef or a.attidentity <> '' or a.attnotnull end), false) into given
        from jsonb_each(layout -> 'columns') c
        join pg_attribute a on a.attrelid = to_regclass(w.table_name) and a.attnum = c.key::int;
      left_ := not (layout -> 'parts' @> (w.layout -> 'parts'));
      if given or left_ then
        perform outbox.ask_copy(w.table_name, prune => left_, restart => true);
        return next w.table_name;
      end if;
    end if;
    update outbox.watched k set layout = outbox.layout_of(k) where k.id = w.id;
  end loop;
end
$$;

revoke all on all functions in schema outbox from public;
