-- Dead letters: changes the target refused, and those of the same keys that came after them.
--
-- A change is copied here before the target's cursor moves past it, and the target records the key as held in the
-- transaction that moves it: at every moment a refused change is before the cursor or here (promise I1). Rows whose
-- key the target does not hold are of an attempt that came to nothing, or delivered since: the relay removes them.

create table if not exists outbox.held (
  id           bigint primary key,
  xid          xid8 not null,
  table_name   text not null,
  op           text not null,
  shape        int,
  key          text not null,
  row          text,
  headers      text,
  created_at   timestamptz not null,
  held_at      timestamptz not null default clock_timestamp(),
  sqlstate     text,
  reason       text not null,
  parent_table text,
  parent_key   text,
  attempts     int not null default 1,
  wanted       text check (wanted in ('retry', 'discard'))
);

comment on table outbox.held is 'Dead letters, copied from outbox.change; `outboxd dead-letters` shows, retries and discards them';
comment on column outbox.held.sqlstate is 'null: nothing is wrong with this change, it waits behind an earlier one of its key';
comment on column outbox.held.wanted is 'what a person asked for; the relay does it';

-- By the key's digest first: only so is this index the one that gives the letters of a key in order (sql/queries/held_wanted.sql).
create index if not exists held_of_key on outbox.held (md5(key), table_name, id);
create index if not exists held_table on outbox.held (table_name, id);
create index if not exists held_asked on outbox.held (table_name, md5(key)) where wanted is not null;
create index if not exists held_refused on outbox.held (table_name, md5(key), id) where sqlstate is not null;
create index if not exists held_parent on outbox.held (parent_table, md5(parent_key)) where parent_key is not null;

-- What is to happen to a change of this table that the target refuses: hold its key, or halt the relay.
alter table outbox.watched add column if not exists on_error text not null default 'hold' check (on_error in ('hold', 'halt'));

-- Changes of a captured table below this id were recorded while it was watched as something else, by its aim (0008): the
-- table was locked when the id was drawn.
alter table outbox.watched add column if not exists aimed text;
alter table outbox.watched add column if not exists since_id bigint not null default 0;

-- The same of names that are watched no longer: their letters may still wait. A row stays for good: numbers only grow, so
-- that it is right for whatever is watched under the name later.
create table if not exists outbox.unwatched (
  table_name text primary key,
  since_id   bigint not null
);

comment on table outbox.unwatched is 'Names that were watched: below since_id their changes were recorded for something else, and letters of these are not sent';
comment on column outbox.held.op is 'as in outbox.change; lost: what became of the row is not known here any more, so that nobody sends it';

-- For whoever watches, who need not read what others' letters say.
create or replace function outbox.has_letters(table_name text) returns boolean
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from outbox.held h where h.table_name = has_letters.table_name);
end
$$;

create or replace function outbox.on_error(table_name text, what text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched := outbox.known(table_name);
begin
  if what not in ('hold', 'halt') then
    raise exception 'on_error is hold or halt, not %', what using errcode = 'invalid_parameter_value';
  end if;
  update outbox.watched set on_error = what where id = w.id;
end
$$;

revoke all on all functions in schema outbox from public;
