-- The outbox: what an application's transactions changed, recorded inside those transactions.
--
-- Every statement here may be run again: `create or replace`, `if not exists`. It needs no superuser,
-- no extension and no role, so it also runs in a Prisma shadow database.

create schema if not exists outbox;

create table if not exists outbox.migration (
  version    int primary key,
  name       text not null,
  checksum   text not null,
  applied_at timestamptz not null default now()
);

-- Made once, where the schema is installed: ids of changes and numbers of wishes mean something within one installation
-- alone. Where the schema is dropped and installed anew it is another one; a copy of the database carries it along.
create table if not exists outbox.installation (
  only_row boolean primary key default true check (only_row),
  id       uuid not null default gen_random_uuid()
);

insert into outbox.installation default values on conflict do nothing;

-- Which slot of outbox.change is written: its last value modulo 4 (none yet: 0). A sequence, because it is read
-- without a snapshot and moved by one setval: no writer waits, and nothing is left for vacuum.
create sequence if not exists outbox.slot as bigint minvalue 0 cache 1;

-- Without CACHE: an id is drawn while the row's lock is held, so per key the order of ids is the order of commits.
create sequence if not exists outbox.change_id_seq as bigint cache 1;

-- One row a changed row. INSERT-only; outbox.prune (0006) empties one slot at a time by TRUNCATE.
--
-- `xid` stands before `id` on purpose: defaults are evaluated in column order, so a transaction has its
-- xid before it draws its first id. The reader's floor (sql/queries/floor.sql) rests on that.
create table if not exists outbox.change (
  xid        xid8 not null default pg_current_xact_id(),
  id         bigint not null default nextval('outbox.change_id_seq'),
  table_name text not null,
  op         text not null,
  shape      int,
  key        text not null,
  row        text,
  headers    text,
  unflushed  boolean not null default current_setting('synchronous_commit') = 'off',
  slot       smallint not null default coalesce(pg_sequence_last_value('outbox.slot') % 4, 0),
  created_at timestamptz not null default clock_timestamp()
) partition by list (slot);

comment on table outbox.change is
  'Changes of watched tables, one row each, written by triggers or outbox.emit in the application''s own transaction. outboxd reads them; do not update or delete.';
comment on column outbox.change.op is 'upsert, delete, truncate, resync or too_large. No constraint: its expression would be parsed anew for every writing statement';
comment on column outbox.change.key is 'JSON object of the key columns, as the target calls them, in the canonical text of their types';
comment on column outbox.change.row is 'JSON object of the row; every value is a scalar: json, arrays and composites travel as their text. Of a row too large, only its size: {"stored_bytes": n}';
comment on column outbox.change.shape is 'which columns the row has, as the target calls them: outbox.shape.id';
comment on column outbox.change.headers is 'what emit was given, or the transaction set as outbox.headers: JSON that may name a traceparent. Anything else is kept as text and read by nobody';
comment on column outbox.change.unflushed is 'the writer ran with synchronous_commit = off: outboxd waits until the commit is on disk';
comment on column outbox.change.slot is 'where the row lies until its slot is emptied; says nothing of its order';

-- Vacuum has nothing to do where rows only come and go all at once: without its visits after so many inserts, and
-- without its giving back of pages, it never stands in the way of a writer or of prune.
-- Nothing but rebase ever updates a row; where a publication is FOR ALL TABLES it may only with a replica identity.
do $$
begin
  for n in 0 .. 3 loop
    execute format(
      'create table if not exists outbox.change_%s partition of outbox.change for values in (%s) with ('
      'autovacuum_vacuum_insert_threshold = -1, toast.autovacuum_vacuum_insert_threshold = -1,'
      ' vacuum_truncate = off, toast.vacuum_truncate = off)', n, n);
    execute format('alter table outbox.change_%s replica identity full', n);
  end loop;
end
$$;

alter sequence outbox.change_id_seq owned by outbox.change.id;
alter sequence outbox.slot owned by outbox.change.slot;

-- (xid, id) finds a window's changes; (id) walks a deep one in order. Neither is unique, so that an
-- insert never waits for another transaction's.
create index if not exists change_xid_id on outbox.change (xid, id);
create index if not exists change_id on outbox.change (id);

-- The highest id that prune has removed: a reader whose cursor lies below it has lost changes.
create table if not exists outbox.pruned (
  only_row boolean primary key default true check (only_row),
  up_to_id bigint not null
);

insert into outbox.pruned (up_to_id) values (0) on conflict do nothing;

create table if not exists outbox.watched (
  id          int generated always as identity primary key,
  table_name  text not null unique,
  key_columns text[],
  include     text[],
  exclude     text[],
  capture     boolean not null,
  target      text,
  rename      jsonb,
  constant    jsonb,
  mask        jsonb,
  filter      text,
  mapping     jsonb,
  left_home   text[],
  watched_at  timestamptz not null default now()
);

alter table outbox.watched add column if not exists interrupted bigint;
alter table outbox.watched add column if not exists mapped boolean not null default false;
alter table outbox.watched add column if not exists watcher oid;
alter table outbox.watched add column if not exists watcher_name name;
alter table outbox.watched add column if not exists watcher_system text;
comment on column outbox.watched.watcher is 'the role that watched it last, by its number; null: it is mapped. See outbox.watcher_of';
comment on column outbox.watched.watcher_name is 'what that role was called then: what counts in another cluster, as for all that a dump brings';
comment on column outbox.watched.watcher_system is 'the cluster in which the number is that role''s: its system identifier';
comment on column outbox.watched.mapped is 'it is on the target: what has its name here is not looked at';
comment on column outbox.watched.interrupted is 'a number of its own for each time that capture went on after it had been given up; null: never';

comment on table outbox.watched is 'Tables whose changes are recorded: by triggers (capture) or by outbox.emit alone';
comment on column outbox.watched.key_columns is 'null: the primary key, whatever its columns are called by then';
comment on column outbox.watched.target is 'its name on the target, null: the same. Changes carry table_name all the same';
comment on column outbox.watched.rename is '{"column of the source": "column of the target"}';
comment on column outbox.watched.constant is '{"column of the target": "text"}';
comment on column outbox.watched.mask is '{"column of the source": "null, hash or redact"}';
comment on column outbox.watched.filter is 'only rows for which this is true travel';
comment on column outbox.watched.mapping is 'made of these by outbox.watch: what capture is handed (0009)';
comment on column outbox.watched.left_home is 'columns, as the target calls them, that travelled until it was watched again in another way';

-- Two tables in one place would delete each other's rows. outbox.watch says so in a sentence; this holds where a snapshot
-- does not show it the other one.
create unique index if not exists watched_place on outbox.watched (coalesce(target, table_name));

-- The table of that name (as outbox.watched has it), or null. Also for whoever may not use its schema, where to_regclass
-- fails: one right that is missing is that table's matter, not that of all who list tables. From the catalogue's cache
-- first, because an old snapshot shows old names.
create or replace function outbox.table_named(name text) returns regclass
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return to_regclass(name);
exception when insufficient_privilege then
  return (select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace
           where n.nspname = (parse_ident(table_named.name))[1] and c.relname = (parse_ident(table_named.name))[2]);
end
$$;

-- Who may see and write each table's rows on the target, as it was last agreed to (`outboxd schema apply`): what a folder
-- without a configuration, or with another one, does not say stays as it is.
create table if not exists outbox.audience (
  table_name text primary key,
  owner      text,
  access     text not null,
  write      boolean not null,
  realtime   boolean not null
);

comment on table outbox.audience is 'What [tables] said of access when it was last applied to the target';

-- Under what other names a table's columns have travelled (and constants: number 0), also once it is watched no longer, or is
-- called otherwise: what they have left on the target is to go when they are left at home.
create table if not exists outbox.travelled (
  relid  oid not null,
  title  text not null,
  number int not null,
  name   text not null,
  primary key (relid, title)
);

-- No unique constraint: two transactions that meet a new set of columns must not wait for each other.
create table if not exists outbox.shape (
  id         int generated always as identity primary key,
  table_name text not null,
  columns    text[] not null
);

create index if not exists shape_table_name on outbox.shape (table_name);

-- Sets of columns of one table that emit may bring: the target composes a statement for each, which takes longer than a
-- thousand rows. They are counted anew when the table is watched or mapped anew: `shapes_above` tells one count from the next.
alter table outbox.watched add column if not exists shapes_above int not null default 0;

-- A name for a command that a person pastes into a shell.
create or replace function outbox.word(name text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when word.name ~ '^[A-Za-z0-9_.]+$' then word.name else format('''%s''', replace(word.name, '''', '''"''"''')) end
$$;

-- Id of a set of columns; a set not seen before is recorded.
create or replace function outbox.shape_of(of_table text, of_columns text[]) returns int
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  found_id int;
begin
  select min(s.id) into found_id from outbox.shape s
   where s.table_name = of_table and s.columns = of_columns;
  if found_id is null then
    insert into outbox.shape (table_name, columns) values (of_table, of_columns) returning id into found_id;
  end if;
  return found_id;
end
$$;

-- Who leads, and where daemons listen: see 0012. Nobody but them and the owner may read where, so that nobody else can make
-- them listen: a notification of anybody's on a known channel is delivered, and a million of them before the next answer.
create table if not exists outbox.leadership (
  only_row boolean primary key default true check (only_row),
  key      int not null default floor(random() * 2147483648),
  since    timestamptz not null default now(),
  channel  text not null default concat('outbox_', replace(gen_random_uuid()::text, '-', ''))
);

revoke all on outbox.leadership from public;
insert into outbox.leadership default values on conflict do nothing;

comment on table outbox.leadership is 'The number of the lock that the leader holds, since when, and the channel that daemons listen on. Whoever may update this may lead, and nobody else';

-- Notify whoever listens. Promise I7: a NOTIFY that finds the server's queue full (somebody listens and sits in a
-- transaction) fails the commit. Well before that nobody rings: the relay's timer finds the change.
-- `outbox.knocked` spares capture to ask again for each row; it goes with a savepoint, as the notification does. Who forges
-- it keeps the timer waiting for changes of its own.
create or replace function outbox.knock(payload text default '') returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_notification_queue_usage() < 0.5 then
    perform pg_notify((select l.channel from outbox.leadership l), payload);
  end if;
  if payload = '' then
    perform set_config('outbox.knocked', pg_current_xact_id()::text, true);
  end if;
end
$$;

-- Ring the bell of a sleeping relay; say nothing to one that is awake.
-- The relay holds this lock exclusively only while it sleeps. A writer that gets the shared lock keeps it
-- until after its commit is visible, so the relay, which must first get the lock, reads that commit.
create or replace function outbox.ring() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if not pg_try_advisory_xact_lock_shared(1869968482, 1) then
    perform outbox.knock(''::text);
  end if;
end
$$;
