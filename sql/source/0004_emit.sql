-- Emit: record a change by a call, for applications that choose what travels themselves.
--
-- Write the business row first, then emit, in the same transaction: the other order draws the id before
-- the row's lock is held, and no reader can repair that.

-- Allow outbox.emit for a table that exists on the target alone (a projection, a summary).
create or replace function outbox.map(table_name text, key_columns text[]) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
declare
  name text := (select string_agg(quote_ident(p), '.' order by n) from unnest(parse_ident(table_name)) with ordinality u(p, n));
  bad  text := outbox.place_taken(name, (select w.target from outbox.watched w where w.table_name = name));
  was  outbox.watched;
begin
  if name not like '%.%' then
    raise exception 'cannot map %: give the schema too, as in public.%', table_name, table_name using errcode = 'invalid_parameter_value';
  elsif name = 'outboxd.heartbeat' then
    raise exception 'cannot map %: that name is outboxd''s own', name using errcode = 'invalid_parameter_value';
  elsif coalesce(cardinality(key_columns), 0) = 0 then
    raise exception 'cannot map %: name its key columns', name using errcode = 'invalid_parameter_value';
  elsif bad is not null then
    raise exception 'cannot map %: %', name, bad using errcode = 'invalid_parameter_value';
  elsif exists (select from outbox.watched w where w.table_name = name and w.capture) and outbox.table_named(name) is not null then
    raise exception 'cannot map %: its triggers record it already, by the key that it is watched by; outbox.emit needs no map there', name
      using errcode = 'invalid_parameter_value', hint = format('where the application alone is to send it: select outbox.watch(%L, capture => false)', name);
  end if;
  select * into was from outbox.watched w where w.table_name = name;
  if was.capture then  -- its table is gone: from here on it is as one of which nothing was ever captured
    perform outbox.ask_copy(name, true, false);
    perform outbox.remove_triggers(was.id, '{}'::regclass[]);
    perform outbox.drop_functions(was.id, '{}'::oid[]);
    update outbox.watched w set capture = false, mapping = null, layout = null, aimed = null where w.id = was.id;
  end if;
  insert into outbox.watched as w (id, table_name, key_columns, capture, mapped) overriding system value values (coalesce(was.id, outbox.free_id()), name, map.key_columns, false, true)
  on conflict on constraint watched_table_name_key do update
     set key_columns = excluded.key_columns, mapped = true, watcher = null, watcher_name = null, watcher_system = null, shapes_above = coalesce((select max(s.id) from outbox.shape s where s.table_name = excluded.table_name), 0);
  return name;
end
$$;

create or replace function outbox.shapes_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 100;

-- How many more sets of columns a table may come with by emit: a row for each, and one more, by which those who bring sets take
-- turns. Whoever brings one takes its row away. So those that are not committed yet count, too, and nobody has to wait for whoever
-- brings them, nor for the row in outbox.watched. `above` is of which count they are: shapes_above.
create table if not exists outbox.shape_left (
  watched_id int not null,
  above      int not null,
  number     int not null,  -- 0: whose turn it is
  primary key (watched_id, above, number)
);

-- The count before stays until the next one: who began under it, or does not see yet that there is another, has to find its rows.
create or replace function outbox.count_shapes(of_id int, from_above int, above_before int) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from outbox.shape_left l
   where (l.watched_id, l.above, l.number) in (select o.watched_id, o.above, o.number from outbox.shape_left o
                                                where o.watched_id = of_id and o.above is distinct from from_above and o.above is distinct from above_before
                                                  for update skip locked);
  insert into outbox.shape_left
  select of_id, from_above, n from generate_series(0, outbox.shapes_limit()) n
   where from_above is not null and not exists (select from outbox.shape_left l where l.watched_id = of_id and l.above = from_above);
end
$$;

-- As the table's owner, whoever watches or maps.
create or replace function outbox.recount_shapes() returns trigger
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform outbox.count_shapes(coalesce(new.id, old.id), new.shapes_above, case when tg_op = 'UPDATE' then old.shapes_above end);
  return null;
end
$$;

drop trigger if exists recount_shapes on outbox.watched;
create trigger recount_shapes after insert or delete or update of shapes_above on outbox.watched for each row execute function outbox.recount_shapes();

do $$ begin perform outbox.count_shapes(w.id, w.shapes_above, w.shapes_above) from outbox.watched w; end $$;

-- Wait for others who bring sets of columns of this table: theirs may be the same. Not for long: they may not end.
create or replace function outbox.await_shapes(w outbox.watched) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set lock_timeout = '250ms'
as $$
begin
  perform from outbox.shape_left l where l.watched_id = w.id and l.above = w.shapes_above and l.number = 0 for update;
exception when lock_not_available or deadlock_detected or serialization_failure then
  null;
end
$$;

-- Take one set's row away: false where there is none to be had. A snapshot that is older than others' sets shows rows that are gone:
-- they are met last, and are nobody's failure. `w`: as it is read again, in case somebody counts anew meanwhile. Whoever sees
-- nothing but rows that are gone counts what it sees of the sets themselves: of that it may be the first to see the rest.
create or replace function outbox.take_shape(w outbox.watched) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  one  int;
  gone boolean := false;
  now  int;
begin
  loop
    for one in
      select o.number from outbox.shape_left o where o.watched_id = w.id and o.above = w.shapes_above and o.number > 0
       order by o.xmax = '0'::xid desc, o.number
    loop
      begin
        delete from outbox.shape_left l
         where (l.watched_id, l.above, l.number) = (select o.watched_id, o.above, o.number from outbox.shape_left o
                                                     where o.watched_id = w.id and o.above = w.shapes_above and o.number = one for update skip locked);
        if found then
          return true;
        end if;
      exception when serialization_failure then
        gone := true;
      end;
    end loop;
    if gone then
      return (select count(*) from outbox.shape s where s.table_name = w.table_name and s.id > w.shapes_above) < outbox.shapes_limit();
    end if;
    select k.shapes_above into now from outbox.watched k where k.id = w.id;
    if now is null or now = w.shapes_above then
      return false;
    end if;
    w.shapes_above := now;
  end loop;
end
$$;

-- Which columns an emitted row has: a set that is known, or one more, as far as there may be more.
create or replace function outbox.emitted_shape(w outbox.watched, columns text[]) returns int
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  known int := (select min(s.id) from outbox.shape s where s.table_name = w.table_name and s.columns = emitted_shape.columns);
begin
  if known is not null then
    return known;
  elsif cardinality(columns) > 1600 or exists (select from unnest(columns) c where octet_length(c) > 63) then
    raise exception 'emit for %: no table has more than 1600 columns, nor one whose name has more than 63 bytes', w.table_name
      using errcode = 'program_limit_exceeded', hint = 'emit the columns that the target table has';
  end if;
  perform outbox.await_shapes(w);
  known := (select min(s.id) from outbox.shape s where s.table_name = w.table_name and s.columns = emitted_shape.columns);
  if known is not null then
    return known;
  end if;
  if not outbox.take_shape(w) then
    raise exception 'emit for %: its rows have come with % different sets of columns, and that is the most', w.table_name, outbox.shapes_limit()
      using errcode = 'program_limit_exceeded',
            hint = format('emit whole rows, or the same columns each time; where these were meant: %s counts anew',
                          case when w.capture or w.key_columns is null then format('select outbox.watch(%L%s)', w.table_name, case when not w.capture then ', capture => false' end)
                               else format('select outbox.map(%L, %L)', w.table_name, w.key_columns) end);
  end if;
  return outbox.shape_of(w.table_name, columns);
end
$$;

create or replace function outbox.refuse_key(table_name text, bytes bigint) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'emit for %: the key has % bytes, and % is the most', table_name, bytes, outbox.key_limit()
    using errcode = 'program_limit_exceeded', hint = 'name the row by something shorter, such as a digest';
end
$$;

-- What travels with every change must not outgrow it.
create or replace function outbox.bounded_headers(headers json) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if octet_length(headers::text) > outbox.headers_limit() then
    raise exception 'emit: the headers have % bytes, and % is the most', octet_length(headers::text), outbox.headers_limit()
      using errcode = 'program_limit_exceeded', hint = 'headers are for a traceparent; give data as columns of the row';
  end if;
  return headers::text;
end
$$;

-- The watched row `table_name` means, in any spelling; an error that says what to do when there is none.
create or replace function outbox.known(table_name text) returns outbox.watched
language plpgsql stable
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
declare
  parts text[] := parse_ident(table_name);
  name  text := format('%I.%I', case when cardinality(parts) > 1 then parts[1] else 'public' end, parts[cardinality(parts)]);
  w     outbox.watched;
begin
  select k.* into w from outbox.watched k where k.table_name = name;
  if not found then
    raise exception '% is neither watched nor mapped', name using errcode = 'undefined_table',
      hint = format('select outbox.watch(%L), or outbox.map(%L, array[key columns]) when the table is on the target alone', name, name);
  end if;
  return w;
end
$$;

-- As which type emit reads a value of a column: one of the system's (16384 is the first oid given to others), one that is made
-- of those and of types of superusers or of emit's own owner, in schemas of theirs, or text. A type of others has code of theirs
-- (a domain's checks), and its name, or what it is made of, may be another by the time it is read: an old snapshot shows what
-- was. What a domain or an array is of stays as it is. `whole`: its text alone can be given.
create or replace function outbox.read_as(of_type oid, typmod int, out type text, out whole boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  t       pg_type;
  below   oid := of_type;
  below_m int := typmod;
  suffix  text := '';
begin
  whole := false;
  loop
    if not exists (select from outbox.types_within(below) w(type) left join pg_type p on p.oid = w.type left join pg_namespace n on n.oid = p.typnamespace
                    where w.type::int8 >= 16384 and (outbox.is_trusted(p.typowner, current_user::name) and outbox.is_trusted(n.nspowner, current_user::name)) is not true) then
      type := format_type(below, below_m) || suffix;
      return;
    end if;
    select * into t from pg_type p where p.oid = below;
    if t.typtype = 'd' then
      below := t.typbasetype;
      below_m := t.typtypmod;
    elsif t.typsubscript = 'array_subscript_handler'::regproc then
      below := t.typelem;
      suffix := '[]';
    else
      type := 'text' || suffix;
      whole := t.typtype is distinct from 'b' and suffix = '';
      return;
    end if;
  end loop;
end
$$;

-- Reads a JSON object by the types of the table's columns, and writes it as capture would. Nothing of others is called.
create or replace function outbox.emit_work(of_table text, given json, cols text[], keys text[], out row_text text, out key_text text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  tbl     regclass := outbox.table_named(of_table);
  columns text := '';
  c       record;
begin
  for c in
    select a.attname as name, r.type, r.whole from pg_attribute a cross join lateral outbox.read_as(a.atttypid, a.atttypmod) r
     where a.attrelid = tbl and a.attnum > 0 and not a.attisdropped and a.attname = any (cols) order by a.attnum
  loop
    if c.whole and json_typeof(given -> c.name) in ('object', 'array') then
      raise exception 'emit for %: column % is to be given as its text: its type is another owner''s', of_table, c.name
        using errcode = 'invalid_parameter_value';
    end if;
    columns := concat_ws(', ', nullif(columns, ''), format('%I %s', c.name, c.type));
  end loop;
  execute format('select %s, %s from json_to_record($1) t(%s)', outbox.row_sql(tbl, cols, null::jsonb), outbox.key_sql(tbl, keys, 't'::text, null::jsonb), columns)
     into row_text, key_text using given;
end
$$;

-- Before it is made for the first time: whom default privileges would give emit to. Who may call it from then on was given it by
-- somebody who meant that, and keeps it (0013).
do $$
begin
  if to_regprocedure('outbox.emit(text, text, json, json, json)') is null then
    create function outbox.emit(table_name text, op text, "row" json default null, key json default null, headers json default null) returns bigint
      language sql as 'select null::bigint';
    perform outbox.close_function('outbox.emit(text, text, json, json, json)'::regprocedure, '{}'::name[]);
  end if;
end
$$;

-- Record one change; returns its id. `row` may have some of the columns (only those are written on the
-- target) and must have the key; a delete takes `key`, or finds it in `row`.
--
-- The source's table is looked at only where somebody has watched it: its columns and their types, never its rows. One that is
-- mapped alone is on the target: what has its name here is nobody's business.
create or replace function outbox.emit(
  table_name text, op text, "row" json default null, key json default null, headers json default null) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD' set timezone = 'UTC' set intervalstyle = 'iso_8601'
set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'
as $$
declare
  w        outbox.watched := outbox.known(table_name);
  tbl      regclass := case when not w.mapped then outbox.table_named(w.table_name) end;
  keys     text[] := coalesce(w.key_columns, outbox.primary_key(tbl));
  given    json := coalesce("row", emit.key);
  cols     text[];
  size     bigint;
  nulls    boolean;
  row_text text;
  key_text text;
  new_id   bigint;
begin
  if op not in ('upsert', 'delete') then
    raise exception 'op is upsert or delete, not %', op using errcode = 'invalid_parameter_value';
  elsif json_typeof(given) is distinct from 'object' then
    raise exception 'emit for % needs a JSON object', w.table_name using errcode = 'invalid_parameter_value';
  elsif op = 'upsert' and "row" is null then
    raise exception 'an upsert of % needs its row', w.table_name using errcode = 'invalid_parameter_value';
  end if;
  select array_agg(distinct k order by k) into cols from json_object_keys(given) k;
  select sum(octet_length(e.value)), bool_or(e.value is null) into size, nulls from json_each_text(given) e where e.key = any (keys);
  if keys is null then
    raise exception '% is gone, or its primary key is: nothing says what its key was', w.table_name using errcode = 'undefined_table',
      hint = format('select outbox.map(%L, array[key columns]) when the table is on the target alone', w.table_name);
  elsif cols is null or not keys <@ cols or nulls then
    raise exception 'emit for % needs the key: %', w.table_name, array_to_string(keys, ', ') using errcode = 'invalid_parameter_value';
  elsif size > outbox.key_limit() then  -- before anything is made of it
    perform outbox.refuse_key(w.table_name, size);
  end if;
  if tbl is not null then
    if not cols <@ outbox.row_columns(tbl, null::text[], null::text[]) then
      raise exception '% has no column %', w.table_name,
        (select string_agg(c, ', ') from unnest(cols) c where c <> all (outbox.row_columns(tbl, null::text[], null::text[])))
        using errcode = 'undefined_column';
    end if;
    cols := outbox.row_columns(tbl, cols, null::text[]);
    select e.* into row_text, key_text from outbox.emit_work(w.table_name, given, cols, keys) e;
  else
    select json_object_agg(e.key, case when json_typeof(e.value) in ('object', 'array') then to_json(e.value::text) else e.value end)::text
      into row_text from json_each(given) e;
    select jsonb_object_agg(k.name, case when jsonb_typeof(k.value) = 'number' then to_jsonb(trim_scale((k.value #>> '{}')::numeric))
                                    else k.value end)::text
      into key_text from (select u.name, given::jsonb -> u.name as value from unnest(keys) u(name)) k;
  end if;
  if op = 'upsert' and octet_length(row_text) > outbox.row_limit() then
    raise exception 'emit for %: the row has % bytes, and % is the most that is recorded', w.table_name, octet_length(row_text), outbox.row_limit()
      using errcode = 'program_limit_exceeded', hint = 'emit the columns that clients need, and keep the large one elsewhere';
  end if;
  if outbox.is_long(key_text) then
    perform outbox.refuse_key(w.table_name, octet_length(key_text)::bigint);
  end if;
  insert into outbox.change (table_name, op, shape, key, row, headers)
  values (w.table_name, op, case when op = 'upsert' then outbox.emitted_shape(w, cols) end, key_text,
          case when op = 'upsert' then row_text end,
          coalesce(outbox.bounded_headers(emit.headers), case when octet_length(current_setting('outbox.headers', true)) > outbox.headers_limit() then outbox.refuse_headers()
                                                              else nullif(current_setting('outbox.headers', true), '') end))
  returning id into new_id;
  perform outbox.ring();
  return new_id;
end
$$;

-- Nothing here is for everybody: grant execute on function outbox.emit to the roles that may call it.
revoke all on all functions in schema outbox from public;
