-- Verifying tables: comparing rows of the source with those that are here, and how far it has come.
--
-- A comparison comes as a batch that writes nothing, at the cursor where the target stands: the cursor row is locked and
-- nothing of the relay's is under way, so what is read here is the very state that the rows were read as of. Whatever is
-- the matter with a comparison, it never stands in the way of the batches behind it.

create table if not exists outboxd.verification (
  relay      text not null,
  table_name text not null,
  state      text not null check (state in ('running', 'done', 'failed')),
  wish       bigint not null default 0,
  asked      boolean not null default false,
  repair     boolean not null default false,
  step       text not null default 'rows' check (step in ('rows', 'extra')),
  after      text,
  rows       bigint not null default 0,
  missing    bigint not null default 0,
  different  bigint not null default 0,
  extra      bigint not null default 0,
  held       bigint not null default 0,
  repaired   bigint not null default 0,
  samples    json not null default '[]',
  reason     text,
  began_at   timestamptz not null,
  last       json,
  aim        text,
  place      text,
  way        text,
  updated_at timestamptz not null default now(),
  primary key (relay, table_name)
);

comment on table outboxd.verification is 'The pass through each table that is under way, or the last one, and how the last whole one ended';
comment on column outboxd.verification.after is 'how far it has come: the last key of the source (rows), or of the target (extra)';
comment on column outboxd.verification.repaired is 'rows that differed, were written again, and were found equal then';
comment on column outboxd.verification.samples is 'some of the rows that differ: kind, key, and the names of columns';
comment on column outboxd.verification.aim is 'what is compared, as outboxd.copy.aim; place is the table here';
comment on column outboxd.verification.way is 'in which order its keys came here when it began (outboxd.key_way)';
comment on column outboxd.verification.began_at is 'by the source''s clock';
comment on column outboxd.verification.last is 'of the last pass that came to its end: when it began and ended, and its counts';

revoke all on outboxd.verification from public;

-- Tables that are not any more what was copied, or is compared, or that have followed a rename behind which a column kept its values: said
-- once, and kept in the records by then.
create or replace function outboxd.moved(relay_name text) returns text[]
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  with copied as (
    update outboxd.copy c set place = null
     where c.relay = relay_name and c.place is distinct from outboxd.place(c.table_name) and c.place is not null returning c.table_name
  ), compared as (
    update outboxd.verification v set place = null
     where v.relay = relay_name and v.place is distinct from outboxd.place(v.table_name) and v.place is not null returning v.table_name
  ), followed as (
    update outboxd.copy c set kept = k.kept
      from (select w.table_name, jsonb_object_agg(l.key, case when l.value = '0' then coalesce(outboxd.ours(m) -> l.key, l.value) else l.value end) as kept
              from outboxd.copy w join outboxd.mirror m on m.table_name = w.table_name cross join jsonb_each(w.kept) l
             where w.relay = relay_name and w.kept @? '$.* ? (@ == 0)' group by 1) k
     where c.relay = relay_name and c.table_name = k.table_name and c.kept <> k.kept and c.place = outboxd.place(c.table_name) returning c.table_name
  )
  select array(select * from copied union select * from compared union select * from followed)
$$;

-- The same of a table that this batch has written, or compared: nobody can put another in its place before the batch ends. A
-- place there and back is seen by those that did something there, whenever somebody looks. True: it was another one, which is news.
create or replace function outboxd.note_place(relay_name text, m outboxd.mirror) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  there text := outboxd.place_of(m) || ' ' || m.key_columns::text;
  other boolean;
begin
  update outboxd.copy c set place = null where c.relay = relay_name and c.table_name = m.table_name and c.place <> there;
  other := found;
  update outboxd.verification v set place = null where v.relay = relay_name and v.table_name = m.table_name and v.place <> there;
  return other or found;
end
$$;

create or replace function outboxd.verifications(relay_name text) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(json_agg(json_build_object(
           'table', v.table_name, 'state', v.state, 'wish', v.wish, 'asked', v.asked, 'repair', v.repair, 'step', v.step, 'after', v.after, 'rows', v.rows,
           'missing', v.missing, 'different', v.different, 'extra', v.extra, 'held', v.held, 'repaired', v.repaired,
           'samples', v.samples, 'reason', v.reason, 'began_at', extract(epoch from v.began_at), 'last', v.last, 'aim', v.aim, 'here', coalesce(v.place = outboxd.place(v.table_name), false), 'ago', extract(epoch from clock_timestamp() - v.updated_at)) order by v.table_name), '[]')
    from outboxd.verification v where v.relay = relay_name
$$;

-- The index that holds a mirror's key; null: there is none.
create or replace function outboxd.key_index(m outboxd.mirror) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select i.indexrelid from pg_index i
     where i.indrelid = outboxd.place_of(m)
       and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
       and (select array_agg(b.attname::text order by b.attname::text collate "C") from pg_attribute b
             where b.attrelid = i.indrelid and b.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
         = (select array_agg(q order by q collate "C") from unnest(m.key_columns) q)
     order by i.indisprimary desc, i.indexrelid limit 1);
end
$$;

-- In which order the keys of a mirror come, as text to be compared. Where it is another one by now, how far a pass has come says
-- nothing.
create or replace function outboxd.key_way(m outboxd.mirror) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select string_agg(concat_ws(' ', quote_ident(a.attname), a.atttypid, a.atttypmod, k.coll), ', ' order by k.n)
      from pg_index i
     cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indcollation::oid[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, coll, n)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
     where i.indexrelid = outboxd.key_index(m));
end
$$;

-- Record how far the verification of a table has come, as a group of the batch says.
create or replace function outboxd.note_verification(relay_name text, name text, entries json) returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  insert into outboxd.verification as v (relay, table_name, state, wish, asked, repair, step, after, rows, missing, different, extra, held, repaired, samples, reason, began_at, last, aim, place, way)
  select relay_name, name, x.state, x.wish, x.asked, x.repair, x.step, x.after, x.rows, x.missing, x.different, x.extra, x.held, x.repaired, x.samples, x.reason,
         to_timestamp(x.began_at), x.last, x.aim, outboxd.place(name), (select outboxd.key_way(m) from outboxd.mirror m where m.table_name = name)
    from json_to_recordset(entries) as x(state text, wish bigint, asked boolean, repair boolean, step text, after text, rows bigint, missing bigint, different bigint,
                                         extra bigint, held bigint, repaired bigint, samples json, reason text, began_at double precision, last json, aim text)
  on conflict on constraint verification_pkey do update
     set state = excluded.state, wish = excluded.wish, asked = excluded.asked, repair = excluded.repair, step = excluded.step, after = excluded.after, rows = excluded.rows,
         missing = excluded.missing, different = excluded.different, extra = excluded.extra, held = excluded.held, repaired = excluded.repaired,
         samples = excluded.samples, reason = excluded.reason, began_at = excluded.began_at, last = excluded.last, aim = excluded.aim, updated_at = clock_timestamp(),
         place = case when v.began_at = excluded.began_at then v.place else excluded.place end,
         way = case when v.began_at = excluded.began_at then v.way else excluded.way end
$$;

-- A mirror's row as the source would write it into a change, as SQL over alias t: equal text means equal rows. The
-- source's types may write the same value otherwise (see outboxd.compare_sql).
create or replace function outboxd.row_sql(m outboxd.mirror, names text[]) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('(select row_to_json(r.*)::text from (select %s) r)', string_agg(
           case when outboxd.travels_as_text(a.atttypid) then format('case when t.%1$I is distinct from null then concat(t.%1$I) end as %1$I', n.name)
                else format('t.%I', n.name) end, ', ' order by n.at))
    from unnest(names) with ordinality n(name, at)
    join pg_attribute a on a.attrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and a.attname = n.name and a.attnum > 0
$$;

-- The rows of a group ($1) that are not as here, as (number in the group, kind, names of columns). By what the group is:
--   digest   keys, and the digest of each row's text: what differs may still be equal, written otherwise
--   compare  rows: read with the types of the columns here, as writing them would; columns generated here are left out
--   present  keys that the source does not have: those that are here
-- Columns that no longer travel are to be null (outboxd.vacant).
-- With `inside`, a condition over t: all rows, and of each whether it is not as here, and which row t inside it is.
create or replace function outboxd.compare_sql(m outboxd.mirror, op text, names text[], inside text default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  title text := format('%I.%I', m.target_schema, m.target_table);
  keyed text := outboxd.same_key_sql(m);
  differs text;
  given text;
  heads text;
  other text;
  vacant text[] := array(select unnest(outboxd.vacant(m.table_name)) except select unnest(names));
begin
  if op = 'compare' then
    select string_agg(c.definition, ', '), string_agg(quote_ident(c.name), ', '),
           format('array_remove(array[%s]::text[], null)', concat_ws(', ',
             string_agg(format('case when t.%I::text is distinct from (%s)::text then %L end', c.name, c.value, c.name), ', ') filter (where not c.generated),
             (select string_agg(format('case when t.%I is distinct from null then %1$L end', v), ', ') from unnest(vacant) v)))
      into given, heads, other from outboxd.columns_of(m, names) c;
  else
    select string_agg(c.definition, ', '), string_agg(quote_ident(c.name), ', '), 'null::text[]' into given, heads, other from outboxd.columns_of(m, m.key_columns) c;
    if op = 'digest' then
      given := given || ', "outboxd digest" text';
      heads := heads || ', "outboxd digest"';
    end if;
  end if;
  differs := case op when 'present' then 't."outboxd here"'
                     when 'digest' then format('t."outboxd here" is null or x."outboxd digest" is distinct from md5(%s)', outboxd.row_sql(m, names))
                                         || (select coalesce(string_agg(format(' or t.%I is distinct from null', v), ''), '') from unnest(vacant) v)
                     else format('t."outboxd here" is null or cardinality(%s) > 0', other) end;
  return format(
    'select x."outboxd at", case when t."outboxd here" is null then ''missing'' else %L end, case when t."outboxd here" then %s end%s'
    ' from rows from (json_to_recordset($1) as (%s)) with ordinality x(%s, "outboxd at")'
    ' left join lateral (select true as "outboxd here", t.*%s from %s t where %s offset 0) t on true%s',
    case op when 'present' then 'extra' else 'different' end, other,
    case when inside is not null then format(', %s, case when t."outboxd here" and %s then t."outboxd place" end', differs, inside) end,
    given, heads, case when inside is not null then ', t.ctid as "outboxd place"' end, title, keyed,
    case when inside is null then ' where ' || differs end);
end
$$;

-- The keys of a table come in another order than when the pass through it began: see outboxd.note_place.
create or replace function outboxd.note_way(relay_name text, m outboxd.mirror) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  update outboxd.verification v set place = null
   where v.relay = relay_name and v.table_name = m.table_name and v.place is not null and v.way is distinct from outboxd.key_way(m);
  return found;
end
$$;

-- The key of a mirror in the order of the index that holds it: the columns of alias t, in the index' own collations (only so
-- can it find a stretch of them), the same of a key read as x, and x's definition. Null: there is no such index.
create or replace function outboxd.key_order(m outboxd.mirror, out ordered text, out given text, out definition text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(format('t.%I', a.attname) || case when k.coll <> 0 and k.coll <> a.attcollation
                      then (select format(' collate %I.%I', l.collnamespace::regnamespace, l.collname) from pg_collation l where l.oid = k.coll)
                      else '' end, ', ' order by k.n),
         string_agg(c.value, ', ' order by k.n), string_agg(c.definition, ', ' order by k.n)
    from (select i.* from pg_index i where i.indexrelid = outboxd.key_index(m)) i
   cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1], (i.indcollation::oid[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, coll, n)
    join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
    join outboxd.columns_of(m, m.key_columns) c on c.name = a.attname
$$;

-- Whether a row t lies in the stretch of keys behind the first ($2; null: from the beginning) and up to the second ($3;
-- null: to the end), by the order that this store has. Null: that cannot be said of this table. A pass whose stretches
-- follow each other looks at every row here, whatever the order, as long as it is one: a row behind where one begins and not behind where a later
-- one ends lies in one of those in between.
create or replace function outboxd.inside_sql(m outboxd.mirror, span json) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select concat_ws(' and ', 'true',
           case when span ->> 0 is not null then format('(%s) > (select %s from json_to_record($2) x(%s))', o.ordered, o.given, o.definition) end,
           case when span ->> 1 is not null then format('(%s) <= (select %s from json_to_record($3) x(%s))', o.ordered, o.given, o.definition) end)
    from outboxd.key_order(m) o
    join pg_class k on k.oid = to_regclass(format('%I.%I', m.target_schema, m.target_table)) and k.relkind = 'r'
   where o.ordered is not null
     and not exists (select from pg_attribute a where a.attrelid = k.oid and a.attname = any (m.key_columns) and not a.attnotnull)
$$;

-- Compare one group: {"rows": how many, "found": [[number, kind, columns], ...]}, or {"failed": SQLSTATE}. Of a group that has
-- a `span` of keys, too: "alone": no row lies in it that is not in the group. False: one may. "moved": see outboxd.note_place.
create or replace function outboxd.compare(relay_name text, g json, entries json) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
as $$
declare
  m      outboxd.mirror;
  found  json;
  inside text;
  known  bigint;
  here   bigint;
begin
  perform set_config('lock_timeout', '200ms', true);  -- what is locked can wait, changes cannot
  m := outboxd.mirror_of(g ->> 'table');
  perform outboxd.require_key(m, g, entries);
  if g ->> 'op' = 'digest' and g -> 'span' is not null then
    inside := outboxd.inside_sql(m, g -> 'span');
  end if;
  if inside is not null then
    execute format('select coalesce(json_agg(json_build_array(d.n - 1, d.kind, d.columns)) filter (where d.differs), ''[]''), count(distinct d.place) from (%s) d(n, kind, columns, differs, place)',
                   outboxd.compare_sql(m, g ->> 'op', array(select json_array_elements_text(g -> 'columns')), inside))
       into strict found, known using entries, (g -> 'span' ->> 0)::json, (g -> 'span' ->> 1)::json;
    execute format('select count(*) from (select from %I.%I t where %s limit $1) t', m.target_schema, m.target_table, inside)
       into strict here using known + 1, (g -> 'span' ->> 0)::json, (g -> 'span' ->> 1)::json;
    return json_build_object('rows', json_array_length(entries), 'found', found, 'alone', here = known,
                             'moved', case when outboxd.note_place(relay_name, m) or outboxd.note_way(relay_name, m) then m.table_name end);
  end if;
  execute format('select coalesce(json_agg(json_build_array(d.n - 1, d.kind, d.columns)), ''[]'') from (%s) d(n, kind, columns)',
                 outboxd.compare_sql(m, g ->> 'op', array(select json_array_elements_text(g -> 'columns'))))
     into strict found using entries;
  return json_build_object('rows', json_array_length(entries), 'found', found, 'moved', case when outboxd.note_place(relay_name, m) then m.table_name end);
exception when query_canceled or others then
  return json_build_object('failed', sqlstate);
end
$$;

-- What a batch asks to be compared; null: nothing.
create or replace function outboxd.compared(relay_name text, parts text[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  g json;
begin
  for i in 2 .. cardinality(parts) by 2 loop
    g := parts[i]::json;
    if g ->> 'op' in ('digest', 'compare', 'present') then
      return outboxd.compare(relay_name, g, parts[i + 1]::json);
    end if;
  end loop;
  return null;
end
$$;

-- The next keys of a mirror behind one (null: from the first), in the order of the index that holds them. "elsewhere": the pass
-- that began then has compared another table, or in another order.
create or replace function outboxd.keys_after(relay_name text, name text, after json, most int, began double precision) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off set lock_timeout = '200ms'
as $$
declare
  m    outboxd.mirror;
  o    record;
  keys text[];
begin
  m := outboxd.mirror_of(name);
  o := outboxd.key_order(m);
  most := least(most, 2000);  -- an answer must end, also where all of them are as long as a key may be
  execute format(
    'select array_agg(d.key) from %1$scross join lateral (select (select row_to_json(k.*)::text from (select %2$s) k) as key from %3$I.%4$I t where octet_length((select row_to_json(k.*)::text from (select %2$s) k)) <= outboxd.key_limit()%5$s order by %6$s limit $2) d',
    case when after is null then '(select) x ' else format('json_to_record($1) as x(%s) ', o.definition) end,
    (select string_agg(format('t.%I', k), ', ') from unnest(m.key_columns) k), m.target_schema, m.target_table,
    case when after is null then '' else format(' and (%s) > (%s)', o.ordered, o.given) end, o.ordered) into keys using after, most;
  return json_build_object('keys', coalesce(keys, '{}'), 'ends', coalesce(cardinality(keys), 0) < most, 'elsewhere', exists (
    select from outboxd.verification v where v.relay = relay_name and v.table_name = name and v.began_at = to_timestamp(began)
       and (v.place is distinct from outboxd.place_of(m) || ' ' || m.key_columns::text or v.way is distinct from outboxd.key_way(m))));
exception when query_canceled or others then
  return json_build_object('keys', array[]::text[], 'ends', true, 'failed', sqlstate);
end
$$;

revoke all on all functions in schema outboxd from public;
