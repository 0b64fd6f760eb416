-- The target's side: a cursor a relay, the map of tables, and one private door.
--
-- The private schema is not exposed by PostgREST. Every statement here may be run again.

create schema if not exists outboxd;
revoke all on schema outboxd from public;

create table if not exists outboxd.migration (
  version    int primary key,
  name       text not null,
  checksum   text not null,
  applied_at timestamptz not null default now()
);

-- Where this database stands. Moves only together with the rows it speaks of (promise I5).
-- `cursor` is the relay's own JSON: the snapshot of the source up to which everything is here.
create table if not exists outboxd.cursor (
  relay      text primary key,
  epoch      bigint not null,
  batch_no   bigint not null default 0,
  digest     text,
  cursor     text,
  updated_at timestamptz not null default now()
);

-- Keys whose newest change the target refused: changes that follow wait in outbox.held on the source. Written in
-- the transaction that moves the cursor past them, so that nobody can take such a change for applied.
create table if not exists outboxd.held (
  relay      text not null,
  table_name text not null,
  key        text not null,
  held_at    timestamptz not null default now()
);

-- By a hash, because a key may be longer than an index entry can be.
create unique index if not exists held_key on outboxd.held (relay, table_name, md5(key));
-- What identifies a row where a publication is FOR ALL TABLES: else its rows could not be deleted.
alter table outboxd.held replica identity full;

-- Rows of the target with a longer key are none of ours: the source records no such key (outbox.key_limit). Lists leave them out.
create or replace function outboxd.key_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 4096;

-- Which tables may be written through the door, and under which key. Nothing else can be.
create table if not exists outboxd.mirror (
  table_name    text primary key,
  target_schema text not null,
  target_table  text not null,
  key_columns   text[] not null
);

comment on column outboxd.mirror.table_name is 'the table''s name on the source, as outbox.change has it';

-- Which columns of the target's tables outboxd itself has filled: what it has written it may take away again. By number: one
-- that somebody makes anew has another, and is theirs.
create table if not exists outboxd.filled (
  relay   text not null,
  place   oid not null,
  title   text not null,
  columns jsonb not null,
  primary key (relay, place)
);

comment on table outboxd.filled is 'Columns that outboxd has written to, {"name": number}, of each table (place: its oid, title: its name). A row for each relay: none waits for another';

-- Even a role that may use the schema sees nothing but through the door.
revoke all on all tables in schema outboxd from public;

-- Allow the relay to write `target`. The key defaults to its primary key.
create or replace function outboxd.map(target regclass, table_name text default null, key_columns text[] default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  keys   text[] := coalesce(key_columns, (
    select array_agg(a.attname::text order by k.n)
      from pg_index i
      cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, n)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
     where i.indrelid = target and i.indisprimary));
  schema name;
  title  name;
  found  record;
begin
  select n.nspname, c.relname into schema, title
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
  if keys is null then
    raise exception 'cannot map %: it has no primary key: add one, or name a unique key: outboxd.map(%, key_columns => array[...])',
      target, quote_literal(target::text) using errcode = 'invalid_parameter_value';
  end if;
  insert into outboxd.mirror values (coalesce(table_name, format('%I.%I', schema, title)), schema, title, keys)
  on conflict on constraint mirror_pkey do update
     set target_schema = excluded.target_schema, target_table = excluded.target_table, key_columns = excluded.key_columns;
  for found in
    select f.what, f.fix from outboxd.findings() f
     where f.name = coalesce(map.table_name, format('%I.%I', schema, title)) and f.rule like 'foreign\_%'
  loop
    raise warning '%', found.what using hint = found.fix;
  end loop;
  return coalesce(table_name, format('%I.%I', schema, title));
end
$$;

create or replace function outboxd.unmap(table_name text) returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
  with gone as (delete from outboxd.mirror m where m.table_name = unmap.table_name returning 1)
  select exists (select from gone)
$$;
