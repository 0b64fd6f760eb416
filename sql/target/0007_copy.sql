-- Tables that are copied as a whole, and tables that are out: how far they have come.
--
-- Written with the rows and the cursor, in one transaction: whoever goes on, after whatever, goes on from here.

create table if not exists outboxd.copy (
  relay      text not null,
  table_name text not null,
  state      text not null check (state in ('wanted', 'copying', 'done', 'out')),
  wish       bigint not null default 0,
  step       text not null default 'rows' check (step in ('rows', 'extra')),
  after      text,
  rows       bigint not null default 0,
  extra      bigint not null default 0,
  pruned     bigint not null default 0,
  prune      boolean not null default false,
  reason     text,
  aim        text,
  place      text,
  empties    text[] not null default '{}',
  left_home  jsonb not null default '{}',
  kept       jsonb not null default '{}',
  since      xid8 not null default pg_current_xact_id(),
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (relay, table_name)
);

comment on column outboxd.copy.state is 'out: the table''s changes are skipped, because it does not fit; it will be copied again';
comment on column outboxd.copy.wish is 'number of the wish on the source (outbox.copy) that this copy fulfils';
comment on column outboxd.copy.after is 'how far it has come: the last key (rows), or the place in the table (extra); out: the cursor up to which nothing was skipped';
comment on column outboxd.copy.aim is 'what it is of, as the source says: the outbox, what was watched, key and mapping';
comment on column outboxd.copy.place is 'the table that it is in (outboxd.place); null: none that is still there';
comment on column outboxd.copy.empties is 'columns that no longer travel, and that this copy sets to null';
comment on column outboxd.copy.left_home is 'columns that were set to null and are to stay so, each with its number here: one that somebody makes anew is theirs';
comment on column outboxd.copy.kept is 'columns that no longer travel and were not set to null: NOT NULL, each with its number here; or none of outboxd''s was called so (0). Set to null once they may be';
comment on column outboxd.copy.since is 'the copy''s first transaction here: a row not written since may be one that the source does not have';

revoke all on outboxd.copy from public;

-- The table that a mirror stands for, and by which key: not one of its name that was made anew. Null: there is none.
create or replace function outboxd.place(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select outboxd.place_of(m) || ' ' || m.key_columns::text from outboxd.mirror m where m.table_name = name
$$;

-- Columns of a mirror that were set to null because they no longer travel, and are to stay so.
create or replace function outboxd.vacant(name text) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array(select distinct a.attname::text
                 from outboxd.copy c cross join jsonb_each_text(c.left_home) l(name, number)
                 join outboxd.mirror m on m.table_name = c.table_name
                 join pg_attribute a on a.attrelid = outboxd.place_of(m)
                                    and a.attname = l.name and a.attnum = l.number::int and not a.attnotnull
                where c.table_name = vacant.name and c.place = outboxd.place(c.table_name)
                order by 1)
$$;

-- Of the columns that kept their values those that still have to, or those that may be null by now (`freed`): also one of
-- ours that was called otherwise, as where the source has renamed a column and the target follows later.
create or replace function outboxd.kept(c outboxd.copy, freed boolean) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array(select a.attname::text
                 from jsonb_each_text(c.kept) l(name, number) join outboxd.mirror m on m.table_name = c.table_name
                 join pg_attribute a on a.attrelid = outboxd.place_of(m)
                                    and a.attname = l.name and a.attgenerated = '' and a.attnotnull <> kept.freed
                                    and a.attnum = case l.number when '0' then (outboxd.ours(m) ->> l.name)::int else l.number::int end
                order by 1)
$$;

create or replace function outboxd.copies(relay_name text) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(json_agg(json_build_object(
           'table', c.table_name, 'state', c.state, 'wish', c.wish, 'step', c.step, 'after', c.after, 'rows', c.rows, 'extra', c.extra,
           'pruned', c.pruned, 'prune', c.prune, 'reason', c.reason, 'aim', c.aim, 'here', coalesce(c.place = outboxd.place(c.table_name), false),
           'empties', c.empties, 'emptied', outboxd.vacant(c.table_name),
           'kept', outboxd.kept(c, false), 'freed', outboxd.kept(c, true), 'awaits', c.kept @? '$.* ? (@ == 0)') order by c.table_name), '[]')
    from outboxd.copy c where c.relay = relay_name
$$;

-- Of these columns of a mirror those that outboxd has filled, each with its number.
create or replace function outboxd.numbered(name text, columns text[]) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_object_agg(o.name, o.number::int), '{}')
    from outboxd.mirror m cross join jsonb_each_text(outboxd.ours(m)) o(name, number) join unnest(numbered.columns) c(name) on c.name = o.name
   where m.table_name = numbered.name
$$;

-- Record how far the copy of a table has come, as a group of the batch says; `begins`: with this batch.
create or replace function outboxd.note_copy(relay_name text, name text, entries json) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  begins boolean := coalesce((entries -> 0 ->> 'begins')::boolean, false);
begin
  if name = 'outboxd.heartbeat' then
    return;  -- a daemon older than heartbeats takes one that it finds for a table, and that for out
  end if;
  insert into outboxd.copy as c (relay, table_name, state, wish, step, after, rows, extra, pruned, prune, reason, aim, place, empties, left_home, kept)
  select relay_name, name, x.state, x.wish, x.step,
         case when x.state = 'out' then (select k.cursor from outboxd.cursor k where k.relay = relay_name) else x.after end, x.rows, x.extra, x.pruned, x.prune, x.reason, x.aim,
         case when begins then outboxd.place(name) end, coalesce(x.empties, '{}'),
         outboxd.numbered(name, x.empties),
         ((select coalesce(jsonb_object_agg(k, 0), '{}') from unnest(x.empties || x.kept) k) || outboxd.numbered(name, x.kept))
           - array(select jsonb_object_keys(outboxd.numbered(name, x.empties)))
    from json_to_recordset(entries) as x(state text, wish bigint, step text, after text, rows bigint, extra bigint, pruned bigint, prune boolean, reason text,
                                         aim text, empties text[], kept text[])
  on conflict on constraint copy_pkey do update
     set state = excluded.state, wish = excluded.wish, step = excluded.step,
         after = case when excluded.state = 'out' and c.state = 'out' then c.after else excluded.after end, rows = excluded.rows,
         extra = excluded.extra, pruned = excluded.pruned, prune = excluded.prune, reason = excluded.reason, updated_at = now(),
         aim = excluded.aim, empties = excluded.empties,
         left_home = case when not begins then c.left_home when split_part(c.aim, ' ', 1) = split_part(excluded.aim, ' ', 1) and c.place = excluded.place then c.left_home || excluded.left_home
                          else excluded.left_home end,
         kept = case when not begins then c.kept when split_part(c.aim, ' ', 1) = split_part(excluded.aim, ' ', 1) and c.place = excluded.place then (c.kept || excluded.kept) - array(select jsonb_object_keys(excluded.left_home))
                     else excluded.kept end,
         place = case when begins then excluded.place else c.place end,
         since = case when begins then pg_current_xact_id() else c.since end,
         started_at = case when begins then now() else c.started_at end;
end
$$;

-- Of these keys those that are no values of the key's types here, by their places from 0 on: no row of the mirror has such a one.
-- Any other error is none of a value's.
create or replace function outboxd.no_values(m outboxd.mirror, keys json) returns int[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  reads text := outboxd.read_keys_sql(m);
  found int[] := '{}';
begin
  execute reads using keys;
  return found;
exception when data_exception or integrity_constraint_violation then
  for n in 0 .. json_array_length(keys) - 1 loop
    begin
      execute reads using json_build_array(keys -> n);
    exception when data_exception or integrity_constraint_violation then
      found := found || n;
    end;
  end loop;
  return found;
end
$$;

-- Rows of a mirror that have not been written since its copy began: those the source does not have are among them.
-- From a place on ("oid tid file" of a table or partition, a row's place, and the file that this is in; null: the beginning),
-- through some of the table, in the order in which it lies on disk: no sorting, and no comparing of keys. Such rows do not
-- move, but for those of a table that is written anew (VACUUM FULL, CLUSTER): it is gone through from its beginning then.
-- "elsewhere": this was another table than the copy is in. "no_values": of the keys that are `held` (null: not asked).
create or replace function outboxd.extra(relay_name text, name text, place text, held json) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  m     outboxd.mirror := outboxd.mirror_of(name);
  tbl   regclass := to_regclass(format('%I.%I', m.target_schema, m.target_table));
  since xid8 := (select c.since from outboxd.copy c where c.relay = relay_name and c.table_name = name);
  most  constant int := 2000;
  many  constant bigint := 4096;  -- pages looked at
  leaf  oid;
  at    tid;
  upto  tid;
  keys  text[];
  last  tid;
  file  oid;
  elsewhere boolean := exists (select from outboxd.copy c where c.relay = relay_name and c.table_name = name
                                  and c.place is distinct from tbl::oid || ' ' || m.key_columns::text);
begin
  leaf := coalesce(split_part(place, ' ', 1)::oid, 0);
  at := coalesce(split_part(place, ' ', 2)::tid, '(0,0)');
  select min(r.relid::oid) into leaf
    from (select p.relid from pg_partition_tree(tbl) p where p.isleaf union select tbl where (select relkind from pg_class where oid = tbl) <> 'p') r
   where r.relid::oid >= leaf;
  if leaf is null then
    return json_build_object('keys', array[]::text[], 'elsewhere', elsewhere, 'no_values', outboxd.no_values(m, held));
  end if;
  execute format('select from only %s limit 0', leaf::regclass);  -- it keeps its file until this has ended
  file := pg_relation_filenode(leaf::regclass);
  if concat_ws(' ', leaf, file) is distinct from concat_ws(' ', split_part(place, ' ', 1), split_part(place, ' ', 3)) then
    at := '(0,0)';
  end if;
  upto := format('(%s,0)', split_part(ltrim(at::text, '('), ',', 1)::bigint + many)::tid;
  execute format(
    'select array_agg(x.key order by x.at), max(x.at), count(*) >= $4 from ('
    'select (select row_to_json(k.*)::text from (select %1$s) k) as key, t.ctid as at from only %2$s t'
    ' where t.ctid > $1 and t.ctid < $2 and age(t.xmin) > age($3::xid)'
    ' and octet_length((select row_to_json(k.*)::text from (select %1$s) k)) <= outboxd.key_limit() limit $4) x',
    (select string_agg(format('t.%I', k), ', ') from unnest(m.key_columns) k), leaf::regclass)
    into keys, last using at, upto, since, most;
  return json_build_object('keys', coalesce(keys, '{}'), 'elsewhere', elsewhere, 'no_values', outboxd.no_values(m, held), 'place',
    case when cardinality(keys) >= most then format('%s %s %s', leaf, last, file)
         when pg_relation_size(leaf::regclass) > 8192 * split_part(ltrim(upto::text, '('), ',', 1)::bigint then format('%s %s %s', leaf, upto, file)
         else format('%s (0,0)', leaf::bigint + 1) end);
end
$$;

-- The same as an answer; whatever is the matter with the table concerns that table.
create or replace function outboxd.look_for_extra(relay_name text, name text, place text, held json) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
declare
  state   text;
  message text;
  context text;
begin
  return outboxd.answer('extra', null, outboxd.extra(relay_name, name, place, held));
exception when query_canceled or others then
  get stacked diagnostics state = returned_sqlstate, message = message_text, context = pg_exception_context;
  return outboxd.refused(null, 1, name, state, message, context, null, null, null, null);
end
$$;

revoke all on all functions in schema outboxd from public;
