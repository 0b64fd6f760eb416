-- Copying a table as of a snapshot: who wants it, and reading its rows range by range.
--
-- A range is read in the transaction in which the end of a window is taken (sql/queries/window_copy.sql), so its rows
-- are the state that the window leads to. Ranges follow the order of the key's own index, here and nowhere else: the
-- target may sort otherwise.

-- Number of a wish: when it was made, in microseconds. Not from a sequence, which would give a number twice where the
-- source goes back in time.
create or replace function outbox.next_wish() returns bigint
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  select (extract(epoch from clock_timestamp()) * 1000000)::bigint
$$;

-- What is wanted, the newest wish of each table. The target keeps the number of the one that it has fulfilled. Who does so
-- is not known here, so wishes add up: of those that asked to prune, or to begin anew, the newest stays known.
create table if not exists outbox.copy (
  table_name text primary key,
  wish       bigint not null,
  prune      bigint not null,
  restart    bigint not null,
  asked_at   timestamptz not null default clock_timestamp()
);

comment on table outbox.copy is 'Tables that are to be brought over as a whole: newly watched ones with rows, `outboxd backfill`; the relay does it';
comment on column outbox.copy.prune is 'number of the newest wish to delete rows that the source does not have, 0: none; so restart, to begin anew';

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
  insert into outbox.copy as c (table_name, wish, prune, restart)
  select w.table_name, k.n, case when ask_copy.prune then k.n else 0 end, case when ask_copy.restart then k.n else 0 end
    from (select outbox.next_wish() as n) k
  on conflict on constraint copy_pkey do update
     set wish = greatest(excluded.wish, c.wish + 1), asked_at = excluded.asked_at,
         prune = case when ask_copy.prune then greatest(excluded.wish, c.wish + 1) else c.prune end,
         restart = case when ask_copy.restart then greatest(excluded.wish, c.wish + 1) else c.restart end
  returning wish into n;
  perform outbox.ring();
  return n;
end
$$;

-- What a copy or a comparison of each captured table is of, as text to be compared with `=`: "installation:digest", of what was
-- watched (not a table of its name that is watched anew), its key, what of its rows travels, as what, and to where; and " digest"
-- of the order in which ranges are read (the key's columns, their types and collations, as the index has them), which matters while
-- some are still to be read. Null while that cannot be said: the table is gone, or has no key. All tables (or `those`) in one
-- statement, for this is asked every second.
create or replace function outbox.aims(those text[] default null) returns table (table_name text, relid oid, aim text)
language sql stable security definer
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
  select w.table_name, r.relid, case when k.keys is not null then i.id || ':' || md5(jsonb_build_array(
           w.id, k.keys, (select jsonb_object_agg(c, true) from unnest(w.include) c), (select jsonb_object_agg(c, true) from unnest(w.exclude) c),
           w.target, w.rename, w.constant, w.mask, w.filter, k.made)::text || coalesce(' ' || w.interrupted, '')) || coalesce(' ' || md5(o.way), '') end
    from outbox.installation i cross join outbox.watched w
   cross join lateral (select outbox.table_named(w.table_name)::oid as relid offset 0) r
    left join pg_index x on x.indrelid = r.relid and x.indisprimary
   cross join lateral (
     select coalesce(w.key_columns, (select array_agg(a.attname::text order by n.n)
                                       from unnest((x.indkey::int2[])[0:x.indnkeyatts - 1]) with ordinality n(attnum, n)
                                       join pg_attribute a on a.attrelid = x.indrelid and a.attnum = n.attnum)) as keys offset 0) c
   -- With what the key's columns are: one of another type is spelled otherwise, and one of the same name may be another.
   cross join lateral (
     select c.keys, (select jsonb_object_agg(a.attname, array[a.attnum::text, format_type(a.atttypid, a.atttypmod)])
                       from pg_attribute a where a.attrelid = r.relid and a.attname = any (c.keys)) as made offset 0) k
   -- What outbox.range_order does.
   cross join lateral (
     select i.way
       from (values (null)) one left join lateral (
              select string_agg(concat_ws(' ', quote_ident(a.attname), a.atttypid, a.atttypmod, n.coll), ', ' order by n.at) as way
                from pg_index i
               cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indcollation::oid[])[0:i.indnkeyatts - 1]) with ordinality n(attnum, coll, at)
                join pg_attribute a on a.attrelid = i.indrelid and a.attnum = n.attnum
               where i.indrelid = r.relid and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
               group by i.indexrelid, i.indisprimary
              having array_agg(a.attname::text) <@ k.keys and k.keys <@ array_agg(a.attname::text)
               order by i.indisprimary desc, i.indexrelid limit 1) i on true
     offset 0) o
   where w.capture and (those is null or w.table_name = any (those))
$$;

-- Columns, as the target calls them, that this table's rows do not have, or no longer under that name: what outboxd itself
-- has put into them there is to go. Not those that were dropped or renamed here: they stay there as they are.
create or replace function outbox.left_home(w outbox.watched) returns text[]
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tbl   regclass := outbox.table_named(w.table_name);
  names text[];
begin
  if tbl is null then
    return '{}';
  end if;
  names := outbox.column_names(tbl);
  return array(
    select c from (select unnest(names)
                   union select unnest(w.left_home)
                   union select t.title from outbox.travelled t where t.relid = tbl and (t.number = 0 or names[t.number] = t.name)
                   except select unnest(outbox.projected(outbox.row_columns(tbl, w.include, w.exclude), w.mapping))) travelled(c)
     where c is not null
     order by c);
end
$$;

-- The key's columns in the order of the index that holds it, and alias `t`'s expressions for them in that index' own
-- collations: only so can the index give the next rows. Named even where they are the columns' own, which may be others by now
-- than this snapshot says.
create or replace function outbox.range_order(tbl regclass, keys text[], out names text[], out ordered text[])
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  columns text[] := outbox.column_names(tbl);
begin
  select array_agg(columns[k.attnum] order by k.n),
         array_agg(format('t.%I', columns[k.attnum])
                   || case when k.coll <> 0
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
  tbl := outbox.table_named(w.table_name);
  columns := outbox.row_columns(tbl, w.include, w.exclude);
  key_sql := outbox.key_sql(tbl, coalesce(w.key_columns, outbox.primary_key(tbl)), 't'::text, null::jsonb);
  row_sql := outbox.row_sql(tbl, columns, null::jsonb);
  condition_sql := 'true';
end
$$;

-- A watched table and its key, as the statements below need them: how a key as outbox.change has it is read as alias k (`read`: %1$s is
-- the JSON), and which row t is that of key k (same). Of a domain what lies below: to read a value of the domain itself
-- would be to run its checks. An enum's label is looked for among those of the column itself: by the name of its type another
-- could stand, as soon as it is looked up. Where it has no such label, k has null.
create or replace function outbox.keyed(w outbox.watched, out tbl regclass, out keys text[], out titles text[], out read text, out same text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  record  text;
  columns text;
begin
  tbl := outbox.table_named(w.table_name);
  keys := coalesce(w.key_columns, outbox.primary_key(tbl));
  if not coalesce(outbox.capturable(tbl, keys), false) then
    raise exception 'the rows of % cannot be named or read any more: `outboxd check` says why', w.table_name using errcode = 'OB007';
  end if;
  select array_agg(coalesce(to_jsonb(w) -> 'mapping' -> 'rename' ->> k.name, k.name) order by k.n) into titles
    from unnest(keys) with ordinality k(name, n);
  select string_agg(format('%I %s', k.title, case when b.base::int8 >= 16384 then 'text' when a.atttypid = b.base then format_type(b.base, a.atttypmod) else format_type(b.base, -1) end), ', '),
         string_agg(format(case when b.base::int8 >= 16384 then '(select e from unnest(enum_range((select t.%2$I from only %3$s t limit 0))) e where concat(e) = j.%1$I) as %1$I' else 'j.%I' end,
                           k.title, k.name, tbl), ', '),
         string_agg(format('t.%I = k.%I', k.name, k.title), ' and ')
    into record, columns, same
    from unnest(keys, titles) k(name, title) join pg_attribute a on a.attrelid = tbl and a.attname = k.name and a.attnum > 0
   cross join lateral (select outbox.base_type(a.atttypid)) b(base);
  read := replace(case when columns like '%enum_range(%' then format('(select %s from json_to_record(@json@) as j(%s)) k', columns, record)
                       else format('json_to_record(@json@) as k(%s)', record) end, '%', '%%');
  read := replace(read, '@json@', '%1$s');
end
$$;

-- The statement that reads the next rows behind a key ($1, as outbox.change has it; `first`: there is none): at most $2,
-- as (key, made: the row, size: its bytes, inside: does it travel?, o1 ...: its order). The JSON is made by what capture
-- makes it with. Rows that a filter leaves out are counted, too: where few rows travel, looking for them must not take
-- longer than a turn may. Nothing that gives one row only stands beside the table: the index' order would be lost to a sort.
create or replace function outbox.range_sql(w outbox.watched, k record, p record, first boolean) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  size    record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude), 't'::text);
  way     record := outbox.range_order(k.tbl, k.keys);
  ordered text := array_to_string(way.ordered, ', ');
  inside  text := case when p.condition_sql <> 'true' then format(' cross join lateral (select %s as inside offset 0) i', p.condition_sql) else '' end;
begin
  return format(
    'select %1$s as key, r.made, coalesce(octet_length(r.made), %2$s) as size, %3$s as inside, %4$s'
    ' from (select t.*, t.tableoid, t.ctid from %5$s t%6$s order by %7$s limit $2) t%8$s'
    ' cross join lateral (select case when not %3$s then null when %9$s then %10$s else outbox.large_row(t.tableoid::regclass, t.ctid, %10$L::text, %11$L::text) end as made offset 0) r'
    ' order by %7$s',
    p.key_sql, size.stored, case when inside = '' then 'true' else 'i.inside' end,
    (select string_agg(format('%s as o%s', u.way, u.n), ', ' order by u.n) from unnest(way.ordered) with ordinality u(way, n)), k.tbl,
    case when first then '' else format(' where (%s) > (select %s from %s)', ordered, (
      select string_agg(format('k.%I', k.titles[array_position(k.keys, c)]), ', ' order by n) from unnest(way.names) with ordinality u(c, n)), format(k.read, '$1::json')) end,
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
  size record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude), 't'::text);
  long text := case when outbox.short_key_sql(k.tbl, k.keys, 't'::text, w.mapping) is not null then p.key_sql end;
begin
  return format(
    'insert into outbox.change (table_name, op, shape, key, row)'
    ' select %L, case when r.sent is null then ''too_large'' else ''upsert'' end, case when r.sent is not null then %s end, %s,'
    ' coalesce(r.sent, %s)'
    ' from %s'
    ' cross join lateral (select t.*, t.tableoid, t.ctid from %s t where %s and %s for share of t) t'
    ' cross join lateral (select case when %s then %s else outbox.large_row(t.tableoid::regclass, t.ctid, %L::text, %L::text) end as made offset 0) m'
    ' cross join lateral (select case when ($2 = 0 or octet_length(m.made) <= $2)%s then m.made end as sent) r',
    w.table_name, outbox.shape_of(w.table_name, p.columns), case when long is null then p.key_sql else format('outbox.name_of(%s)', long) end,
    outbox.told_sql(size.told, long), format(k.read, '$1::json'), k.tbl, k.same, p.condition_sql,
    size.small, p.row_sql, p.row_sql, size.bytes, ' and not outbox.is_long(' || long || ')');
end
$$;

-- These keys, null in place of those that are no values of the key's types here: the target's types may hold more, and
-- no row here has such a key.
create or replace function outbox.readable_keys(keys text[], k record) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  reads text := format('select coalesce(bool_and(%s), true) from unnest($1) u(key) cross join lateral %s',
                       (select string_agg(format('k.%I is not null', t), ' and ') from unnest(k.titles) t), format(k.read, 'u.key::json'));
  sound boolean;
begin
  execute reads into sound using keys;
  if sound then
    return keys;
  end if;
  raise exception using errcode = 'data_exception';
exception when data_exception or integrity_constraint_violation then
  for i in 1 .. cardinality(keys) loop
    begin
      execute reads into sound using keys[i : i];
      keys[i] := case when sound then keys[i] end;
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
  size record := outbox.size_sql(k.tbl, outbox.row_columns(k.tbl, w.include, w.exclude), 't'::text);
begin
  return format(
    'select u.key, r.made, case when t.ctid is null then -1 else coalesce(octet_length(r.made), %1$s) end as size, true as inside, u.n as o1'
    ' from unnest($1, $2) with ordinality u(key, readable, n) left join lateral %2$s on true'
    ' left join lateral (select t.*, t.tableoid, t.ctid from %3$s t where %4$s and %5$s limit 1) t on true'
    ' cross join lateral (select case when t.ctid is null then null when %6$s then %7$s else outbox.large_row(t.tableoid::regclass, t.ctid, %7$L::text, %8$L::text) end as made offset 0) r'
    ' order by u.n',
    size.stored, format(k.read, 'u.readable::json'), k.tbl, k.same, p.condition_sql, size.small, p.row_sql, size.bytes);
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
-- then sees it empty. Or an index, whose key has other types by now than the snapshot says. To be asked once it has been read:
-- until this transaction ends that cannot happen any more.
create or replace function outbox.rewritten(tbl regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from (select tbl as relid union select p.relid from pg_partition_tree(tbl) p union select i.indexrelid from pg_index i where i.indrelid = tbl) r
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
--   still    until the transaction ends nobody writes to the table
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
  if what = 'still' then
    -- LOCK of a view locks what it is of: whoever puts one in the table's place is not followed.
    if not exists (select from pg_class c where c.oid = outbox.table_named(w.table_name) and c.relkind in ('r', 'p')) then
      raise exception '% is no table any more: `outboxd check` says more', w.table_name using errcode = 'OB007';
    end if;
    perform outbox.lock_table(outbox.table_named(w.table_name), 'share'::text);
    return;
  end if;
  if outbox.table_named(w.table_name) is not null then
    perform outbox.lock_table(outbox.table_named(w.table_name), 'access share'::text);
  end if;
  k := outbox.keyed(w);
  p := outbox.projection(watched_id);
  columns := p.columns;
  if what in ('rows', 'digests') and k.read like '%enum_range(%' and outbox.readable_keys(keys[1 : 1], k) = array[null]::text[] then
    raise exception 'a key of % that was read is no value of its type any more', w.table_name using errcode = 'invalid_text_representation';
  end if;
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
        execute outbox.pieces_sql(outbox.these_sql(w, k, p), 1, false, 0) using keys, outbox.readable_keys(keys, k), greatest(max_bytes, 1), row_bytes
      loop
        return next;
      end loop;
    when 'missing' then
      return query execute format(
        'select null::text[], string_agg(case when x.readable is null then x.key else %s end, e''\x1d'' order by x.n), null::text, null::bytea'
        ' from unnest($1, $2) with ordinality x(key, readable, n) left join lateral %s on true'
        ' cross join lateral (select %s) t'
        ' where not exists (select from %s t where %s and %s)',
        p.key_sql, format(k.read, 'x.readable::json'), (select string_agg(format('k.%I as %I', u.title, u.name), ', ') from unnest(k.titles, k.keys) u(title, name)),
        k.tbl, k.same, p.condition_sql) using keys, outbox.readable_keys(keys, k);
    when 'touch' then
      foreach one in array array_remove(outbox.readable_keys(keys, k), null) loop
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
  -- switched off seems dear, and would have each range compiled. Memoize would take each row for a key, to find none again.
  execute format(
    'create or replace function outbox.%I(what text, keys text[], most int, max_bytes bigint, row_bytes bigint)'
    ' returns table (columns text[], named text, texts text, sizes bytea) language sql volatile security definer'
    ' set search_path = pg_catalog, pg_temp set row_security = off set constraint_exclusion = off'
    ' set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_memoize = off set jit = off%s'
    ' as %L',
    title,
    (select string_agg(format(' set %s = %L', p.name, p.setting), '') from (
       select pins.setting, lag(pins.setting) over (order by n) as name, n
         from unnest(outbox.spelling(null::regclass, null::text[])) with ordinality pins(setting, n)) p where p.n % 2 = 0),
    outbox.copy_body(watched_id));
  perform outbox.close_function(format('outbox.%I(text, text[], int, bigint, bigint)', title)::regprocedure,
                                array[(select pg_get_userbyid(p.proowner) from pg_proc p where p.oid = 'outbox.ask_copy(text, boolean, boolean)'::regprocedure)]);
end
$$;

-- What outbox.copy_<id> consists of, but for its settings.
create or replace function outbox.copy_body(watched_id int) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return format('select * from outbox.copy_work(%s::int, $1, $2, $3, $4, $5)', watched_id);

-- May nobody but the schema's owner and superusers alter this function? Its owner is asked of the snapshot: an older one may show
-- one that has given it away since, as only that one can.
create or replace function outbox.is_ours(routine regprocedure) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce((select o.rolsuper or o.rolname = current_user from pg_proc p join pg_roles o on o.oid = p.proowner where p.oid = routine), false)
$$;

-- Is this function, which belongs to whoever watched a table, what outbox.compose_copy made, so that calling it runs nothing of that
-- one's with the rights of whoever calls it, here the schema's owner? And until the transaction ends it stays that: its row in the
-- catalogue is locked, which ALTER, REPLACE and DROP wait for, where the owner may do that, as a superuser (docs/decisions/0036).
--
-- The row first, then the catalogue's cache, which is what is called: an old snapshot shows what was, and so may the cache for a
-- moment, but each time it looks again from now on, it finds the row that is locked. Whoever has the row locked, or has altered it
-- since the snapshot, keeps this table from being read, and no other.
create or replace function outbox.is_door(routine regprocedure, watched_id int) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
begin
  if not outbox.is_ours(routine) and (select r.rolsuper from pg_roles r where r.rolname = current_user) then
    perform from pg_proc p
      where p.oid = routine and p.prosecdef and p.prolang = (select l.oid from pg_language l where l.lanname = 'sql')
        and p.prosrc = outbox.copy_body(watched_id) and p.prosqlbody is null
        for share of p skip locked;
    if not found then
      return false;
    end if;
  end if;
  return coalesce((
    select starts_with(f.def, format(
             E'CREATE OR REPLACE FUNCTION outbox.%I(what text, keys text[], most integer, max_bytes bigint, row_bytes bigint)\n'
             ' RETURNS TABLE(columns text[], named text, texts text, sizes bytea)\n LANGUAGE sql\n SECURITY DEFINER\n', 'copy_' || watched_id))
       and right(f.def, length(b.body)) = b.body
      from (select pg_get_functiondef(routine)) f(def),
           (select format(E'\nAS $function$%s$function$\n', outbox.copy_body(watched_id))) b(body)), false);
exception when serialization_failure then
  return false;
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
  w    outbox.watched := outbox.known(table_name);
  door regprocedure := to_regprocedure(format('outbox.%I(text, text[], int, bigint, bigint)', 'copy_' || w.id));
begin
  if outbox.is_door(door, w.id) is not true or not exists (select from outbox.own_functions(w) o where o = door) then
    raise exception '% cannot be copied: run `outboxd watch %` again', w.table_name, outbox.word(w.table_name) using errcode = 'OB007';
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
  w   outbox.watched;
  tbl regclass;
begin
  for w in select * from outbox.watched o where o.table_name = any (tables) loop
    table_name := w.table_name;
    unfit := null;
    columns := null;
    begin
      tbl := outbox.table_named(w.table_name);
      if tbl is null then
        unfit := format('the source has no table %s any more', w.table_name);
      else
        unfit := outbox.unfit(tbl, coalesce(w.key_columns, outbox.primary_key(tbl)), w.include, outbox.still_left_out(tbl, w.exclude, w.mapping),
                              (select coalesce(min(pg_get_userbyid(p.proowner)), current_user)::name from pg_proc p
                                where p.oid = to_regprocedure(format('outbox.capture_%s()', w.id))));
        columns := case when unfit is null then (outbox.projection(w.id)).columns end;
      end if;
    exception when others then
      unfit := sqlerrm;  -- ours: it names no value
    end;
    return next;
  end loop;
end
$$;

-- A table and its partitions, by the catalogue alone: pg_partition_tree locks each of them, and would wait for whoever alters
-- or truncates one. Who looks at all tables, again and again, must wait for none.
create or replace function outbox.tree(root regclass) returns setof regclass
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive tree as (
    select root as relid
    union all
    select i.inhrelid::regclass from tree t join pg_inherits i on i.inhparent = t.relid join pg_class c on c.oid = i.inhrelid and c.relispartition)
  select relid from tree
$$;

-- Why changes of a watched table are not captured: no trigger for its rows there (or, of the table itself, for TRUNCATE),
-- or one that does not fire always. (pg_restore and others let triggers sleep, and wake them as ordinary ones.) Empty: they are.
create or replace function outbox.asleep(w outbox.watched) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select case
             when g.state = 'D' then format('trigger %I of %s is disabled', g.tgname, t.relid)
             when g.tgname is not null then format('trigger %I of %s does not fire always', g.tgname, t.relid)
             else format('%s has lost its trigger', t.relid) end
      from (select outbox.table_named(w.table_name) as root) r
     cross join lateral outbox.tree(r.root) t(relid)
     cross join lateral (values (1), (0)) kind(row)
      left join lateral (select g.tgname, g.tgenabled as state from pg_trigger g
                          where g.tgrelid = t.relid and g.tgfoid = to_regprocedure(format('outbox.capture_%s()', w.id)) and g.tgtype & 1 = kind.row
                          order by g.tgenabled = 'A', g.tgname limit 1) g on true
     where w.capture and t.relid is not null and g.state is distinct from 'A'
       and (g.state is not null or kind.row = 1 or t.relid = r.root)
     order by 1)
$$;

-- What cannot be as it was once the key has been spelled otherwise: the constraint that says the order of its columns, and the
-- transactions that last altered these, and labels of their enums. By the constraint's number, which REINDEX CONCURRENTLY leaves
-- as it is, and not by the index', which it does not. VACUUM FULL and CLUSTER leave all of it.
create or replace function outbox.key_mark(w outbox.watched) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select md5(concat_ws(' ', case when w.key_columns is null then k.oid end, (
           select string_agg(concat_ws(' ', a.attnum, a.xmin, (select string_agg(concat_ws(' ', e.oid, e.xmin), ' ' order by e.oid) from pg_enum e where e.enumtypid = a.atttypid)), ',' order by a.attnum)
             from pg_attribute a where a.attrelid = r.relid and case when w.key_columns is null then a.attnum = any (k.conkey) else a.attname = any (w.key_columns) end)))
    from (select outbox.table_named(w.table_name)::oid as relid) r
    left join pg_constraint k on k.conrelid = r.relid and k.contype = 'p'
$$;

-- What of a table decides which values its rows have, beside statements that are captured:
--   columns   those that travel or that the filter reads, by number: name, type, its modifier, what generates it; the
--             transaction that last altered it; and the collation of the key's and of those that the filter reads
--   types     of those: an enum's labels, a composite's attributes
--   parts     the tables that hold the rows, and the file of each
--   triggers  ours, and the transaction that last altered each
--   former    names of columns that once travelled and are gone
--   asleep    why changes are not captured
--   key       outbox.key_mark
create or replace function outbox.layout_of(w outbox.watched) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with
    root as (select outbox.table_named(w.table_name) as relid),
    keyed as materialized (select coalesce(w.key_columns, outbox.primary_key(r.relid)) as names from root r),  -- once, not for each column
    tree as (select t.relid from root r, outbox.tree(r.relid) t(relid)),
    columns as (
      select a.*, a.xmin, d.adbin from root r
        join pg_attribute a on a.attrelid = r.relid and a.attnum > 0 and not a.attisdropped
        left join pg_attrdef d on d.adrelid = r.relid and d.adnum = a.attnum and a.attgenerated <> ''
       where (w.include is null or a.attname = any (w.include)) and (w.exclude is null or a.attname <> all (w.exclude))
          or w.mapping -> 'needs' ? a.attname),
    types as (select distinct t.type from (select distinct atttypid from columns where atttypid::int8 >= 16384) c, outbox.types_within(c.atttypid) t(type))
  select jsonb_build_object(
    'columns', coalesce((select jsonb_object_agg(c.attnum, jsonb_build_array(
                         c.attname, c.atttypid::int8, c.atttypmod, md5(c.adbin::text), c.xmin::text,
                         case when w.mapping -> 'needs' ? c.attname or c.attname = any ((select names from keyed)::text[]) then c.attcollation::int8 end)) from columns c), '{}'),
    'types', coalesce((select jsonb_object_agg(made.type::text, made.of)
                from (select e.enumtypid as type, jsonb_object_agg(e.oid::text, e.enumlabel) as of
                        from pg_enum e where e.enumtypid in (select type from types) group by 1
                      union all
                      select t.oid, jsonb_object_agg(a.attnum, jsonb_build_array(a.atttypid::int8, a.atttypmod))
                        from pg_type t join pg_attribute a on a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
                       where t.typtype = 'c' and t.oid in (select type from types) group by 1) made), '{}'),
    'parts', coalesce((select jsonb_object_agg(t.relid::oid::text, c.relfilenode::int8)
                from tree t join pg_class c on c.oid = t.relid where c.relkind <> 'p'), '{}'),
    'triggers', coalesce((select jsonb_object_agg(own.relid, own.triggers)
                   from (select g.tgrelid::oid::text as relid, jsonb_object_agg(g.oid::text, g.xmin::text) as triggers
                           from pg_trigger g
                          where g.tgrelid in (select relid from tree) and g.tgfoid = to_regprocedure(format('outbox.capture_%s()', w.id)) group by 1) own), '{}'),
    'former', coalesce((select jsonb_agg(f.name order by f.name) from (
                select jsonb_array_elements_text(w.layout -> 'former') as name
                union select c.value ->> 0 from jsonb_each(w.layout -> 'columns') c
                except select c.attname::text from columns c) f), '[]'),
    'asleep', to_jsonb(outbox.asleep(w)),
    'key', outbox.key_mark(w))
$$;

-- Captured tables whose changes are not captured now, and why.
create or replace function outbox.uncaptured() returns table (table_name text, because text[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select w.table_name, a.because from outbox.watched w cross join lateral outbox.asleep(w) a(because)
   where w.capture and a.because <> '{}' order by w.table_name
$$;

-- Did this partition come with the rows that it had? Not one that was made as a partition: its columns and those that
-- every table has were then written by one command.
create or replace function outbox.came_filled(part oid, known jsonb) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select pg_relation_size(part) > 0 and exists (
    select from pg_partition_ancestors(part) p join pg_inherits i on i.inhrelid = p.relid
      join pg_attribute t on t.attrelid = p.relid and t.attname = 'tableoid'
     where not known ? p.relid::oid::text
       and not exists (select from pg_attribute a where a.attrelid = p.relid and a.attnum > 0 and a.xmin = t.xmin and a.cmin = t.cmin
                          and i.xmin = t.xmin))
$$;

-- Between two layouts of a table, an older one and that of now:
--   given   rows may have got other values: a column added with one, renamed, of another type, computed otherwise; one of a
--           name that another had before; a label renamed; a column altered and the rows written anew
--   gone    rows may have gone, or changes of them are not recorded: a partition detached or dropped, the table made anew,
--           a trigger that slept, a partition truncated that no trigger for TRUNCATE guards, a filter's column given other values
--   came    a partition came with rows
--   named   rows may have got another key, or have had one for a while: a label of its enum renamed, the key altered there and
--           back. (So it looks after a dump or pg_upgrade, too, which are `gone` anyway.)
create or replace function outbox.compared(
  w outbox.watched, older jsonb, now jsonb, out given boolean, out gone boolean, out came boolean, out named boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  rewritten bool := exists (select from jsonb_each(now -> 'parts') p where older -> 'parts' -> p.key <> p.value);
  altered   text[];  -- columns
  renamed   oid[] := array(select key::oid from jsonb_each(older -> 'types') t join jsonb_each(now -> 'types') n using (key) where not n.value @> t.value);
begin
  select array_agg(c.value ->> 0) into altered
    from jsonb_each(now -> 'columns') c
   cross join lateral (select older -> 'columns' -> c.key as was) o
   where case when o.was is not null
              then (o.was - 4 - 3) <> (c.value - 4 - 3) or c.value -> 3 <> 'null' and o.was -> 3 <> c.value -> 3
                   or rewritten and o.was -> 4 <> c.value -> 4
              else rewritten or older -> 'former' ? (c.value ->> 0)
                   or exists (select from jsonb_each(older -> 'columns') b where b.value ->> 0 = c.value ->> 0)
                   or exists (select from pg_attribute a where a.attrelid = outbox.table_named(w.table_name) and a.attnum = c.key::int
                                 and (a.atthasdef or a.attidentity <> '' or a.attnotnull))
                   or exists (select from jsonb_object_keys(now -> 'parts') p(relid) join pg_attribute a on a.attrelid = p.relid::oid
                               where a.attname = c.value ->> 0 and a.attnum > 0 and a.atthasmissing) end;
  given := altered is not null or renamed <> '{}';
  named := exists (select from pg_attribute a where a.attrelid = outbox.table_named(w.table_name) and a.atttypid = any (renamed)
                      and a.attname = any (coalesce(w.key_columns, outbox.primary_key(a.attrelid))))
        or older ->> 'key' <> now ->> 'key';
  gone := exists (select from jsonb_object_keys(older -> 'parts') p(relid) where not now -> 'parts' ? p.relid)
       or now -> 'asleep' = '[]'
          and (older -> 'asleep' <> '[]' or exists (select from jsonb_each(older -> 'triggers') t where now -> 'triggers' -> t.key <> t.value))
       or coalesce(w.mapping -> 'needs' ?| altered, false)
       or exists (select from jsonb_each(now -> 'parts') p
                   where older -> 'parts' -> p.key <> p.value
                     and not exists (select from pg_trigger g where g.tgrelid = p.key::oid and g.tgtype & 1 = 0 and g.tgfoid = to_regprocedure(format('outbox.capture_%s()', w.id))));
  came := exists (select from jsonb_object_keys(now -> 'parts') p(relid)
                   where not older -> 'parts' ? p.relid and outbox.came_filled(p.relid::oid, older -> 'triggers'));
end
$$;

-- Which watched tables have rows that were given values, or have left or come, without a statement that was captured. They
-- are to be copied again, with `prune` where rows may have left; where triggers sleep, once they are awake again (until then
-- `uncaptured` tells).
-- By the catalogue alone; but a size waits for whoever has the relation locked: that table is left for the next look.
create or replace function outbox.notice(of_table text default null) returns setof text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w       outbox.watched;
  seen    jsonb;
  since   record;
  patient text := current_setting('lock_timeout');
begin
  if of_table is null then  -- for watch there is no next look
    perform set_config('lock_timeout', '100ms', true);
  end if;
  for w in
    select * from outbox.watched k
     where k.capture and (of_table is null or k.table_name = of_table) and outbox.table_named(k.table_name) is not null
     order by k.id
  loop
    begin
      seen := outbox.layout_of(w);
      continue when seen = w.layout;
      perform from outbox.watched k where k.id = w.id and k.layout is not distinct from w.layout for update skip locked;
      continue when not found;
      if w.layout is not null then
        since := outbox.compared(w, w.layout, seen);
        if since.given or since.gone or since.came then
          perform outbox.ask_copy(w.table_name, since.gone, true);
          return next w.table_name;
        end if;
        if since.named then  -- its letters are of something else, though all is called as it was: see notice_aims, outbox.installed
          update outbox.watched k set aimed = '' where k.id = w.id;
        end if;
      end if;
      update outbox.watched k set layout = seen where k.id = w.id;
    exception when lock_not_available then
      if of_table is not null then
        raise;
      end if;
    end;
  end loop;
  perform set_config('lock_timeout', patient, true);
  if of_table is null then  -- whoever watches a table notes it (outbox.installed)
    return query select outbox.notice_aims();
  end if;
end
$$;

-- Captured tables that are of something else by now than when they were watched: a migration has given the key another type,
-- or its name to another column. Since when is known only while nobody writes; a table that stays busy is left for the next look.
create or replace function outbox.notice_aims() returns setof text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
declare
  w outbox.watched;
begin
  for w in select k.* from outbox.aims(null::text[]) a join outbox.watched k on k.table_name = a.table_name where not outbox.same_rows(a.aim, k.aimed) loop
    begin
      perform from outbox.watched k where k.id = w.id and k.aimed is not distinct from w.aimed for update skip locked;
      continue when not found;
      perform outbox.copy_of(w.table_name, 'still'::text, null::text[], 0, 0::bigint, 0::bigint);
      if outbox.note_aim(w.id) then
        perform outbox.ask_copy(w.table_name, true, true);
        return next w.table_name;
      end if;
    exception when lock_not_available or insufficient_privilege or sqlstate 'OB007' then
      null;
    end;
  end loop;
end
$$;

-- Are these aims of the same rows, in whatever order they are read? Null where one cannot be said.
create or replace function outbox.same_rows(one text, other text) returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when one is not null then split_part(one, ' ', 1) is not distinct from split_part(other, ' ', 1) end
$$;

-- Of these tables, as letters are judged by: is it watched, or mapped, and what is its key called on the target by now? The id
-- below which its changes were recorded for something else, and are there letters that nobody sends (`left_over`: of those, or
-- lost)? Of a captured one also which columns travel, its aim, and is it noted since when that holds (`sure`)? Null: nobody can say.
create or replace function outbox.identities(tables text[])
returns table (table_name text, watched boolean, keys text[], columns text[], aim text, sure boolean, left_over boolean, since_id bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w    outbox.watched;
  tbl  regclass;
begin
  foreach table_name in array tables loop
    select * into w from outbox.watched k where k.table_name = identities.table_name;
    watched := found;
    tbl := outbox.table_named(w.table_name);
    keys := coalesce(w.key_columns, outbox.primary_key(tbl));
    tbl := case when w.capture then tbl end;
    keys := case when keys is not null then outbox.projected(keys, jsonb_strip_nulls(jsonb_build_object('rename', w.mapping -> 'rename'))) end;
    columns := case when tbl is not null then outbox.projected(outbox.row_columns(tbl, w.include, w.exclude), w.mapping) end;
    aim := case when tbl is not null then (select a.aim from outbox.aims(array[w.table_name]) a) end;
    sure := tbl is null or coalesce(outbox.same_rows(aim, w.aimed), false) and coalesce(w.layout ->> 'key' = outbox.key_mark(w), true);
    since_id := greatest(w.since_id, (select u.since_id from outbox.unwatched u where u.table_name = identities.table_name), 0);
    left_over := exists (select from outbox.held h where h.table_name = identities.table_name and (h.id between 1 and identities.since_id - 1 or h.id < 0 and h.op = 'lost'));
    return next;
  end loop;
end
$$;

-- Note what a watched table is of by now, and since which change. Is it of something else than before, so that a copy has to
-- bring its rows? Letters of before are not sent any more: also where all is as it was once by then. For whoever watches: the
-- letters and the sequence are the owner's.
create or replace function outbox.note_aim(watched_id int) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w   outbox.watched;
  now text;
begin
  select * into strict w from outbox.watched k where k.id = watched_id;
  select a.aim into now from outbox.aims(array[w.table_name]) a;
  if now is null or outbox.same_rows(now, w.aimed) and coalesce(w.layout ->> 'key' = outbox.key_mark(w), true) then
    return false;
  end if;
  -- Its writers wait: what they have recorded has a lower number than comes next, what they will record has not.
  update outbox.watched k set aimed = now, since_id = (select q.last_value + q.is_called::int from outbox.change_id_seq q) where k.id = watched_id;
  -- Letters that are no changes have no such number. A copy that prunes makes them again, if they still mean something.
  update outbox.held h set op = 'lost' where h.table_name = w.table_name and h.id < 0 and h.op = 'delete';
  return w.aimed is not null and current_setting('outbox.copy', true) is distinct from 'off'
      or exists (select from outbox.held h where h.table_name = w.table_name);
end
$$;

-- A table is captured no longer, and its writers wait, or it is gone: since when its changes were recorded for what it was last
-- outlives that. `ends`: it is not even mapped.
create or replace function outbox.note_end(watched_id int, ends boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform outbox.note_aim(watched_id);
  if ends then
    insert into outbox.unwatched as u (table_name, since_id)
    select w.table_name, w.since_id from outbox.watched w where w.id = watched_id and w.since_id > 0
    on conflict on constraint unwatched_pkey do update set since_id = greatest(u.since_id, excluded.since_id);
  end if;
end
$$;

-- The triggers of a watched table have just been put there: what is seen now is no change of it. If they had slept, its
-- rows are copied.
create or replace function outbox.installed(watched_id int) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched;
begin
  select * into strict w from outbox.watched k where k.id = watched_id;
  if outbox.note_aim(watched_id) then
    perform outbox.ask_copy(w.table_name, true, true);
  end if;
  update outbox.watched k set layout = outbox.layout_of(k) where k.id = watched_id;
  if w.layout -> 'asleep' <> '[]' then  -- also of a table that is not to be copied: what it had, not what it missed
    perform outbox.ask_copy(w.table_name, true, true);
  end if;
end
$$;

revoke all on all functions in schema outbox from public;
