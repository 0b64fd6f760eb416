-- What the target sees with its own eyes, at each row written and at each batch committed. It refuses nothing: what
-- must not be is noted, and read when the run has ended.

create schema torture;

create table torture.violation (
  id   bigint generated always as identity primary key,
  what text not null,
  said text not null,
  at   timestamptz not null default clock_timestamp()
);

-- The last version of each row that was ever written here, and how often it was; also of rows deleted since.
create table torture.seen (
  table_name text,
  key        text,
  version    bigint not null,
  writes     bigint not null default 1,
  primary key (table_name, key)
);

create table torture.batch (
  batches bigint not null
);

insert into torture.batch values (0);

-- Promises I3 and I4: a version not above the last one is an effect that happened twice, or a step back.
create function torture.written() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  of_table text := tg_table_name;  -- a name compares by another collation than the index
  row_key  text := to_jsonb(new) ->> tg_argv[0];
  last     bigint;
begin
  select s.version into last from torture.seen s where s.table_name = of_table and s.key = row_key;
  if new.version <= last then
    insert into torture.violation (what, said)
    values (case when new.version = last then 'repeated' else 'backwards' end, format('%s %s: version %s after %s', tg_table_name, row_key, new.version, last));
  end if;
  insert into torture.seen as s (table_name, key, version) values (of_table, row_key, new.version)
  on conflict (table_name, key) do update set version = greatest(s.version, excluded.version), writes = s.writes + 1;
  return null;
end
$$;

create trigger written after insert or update on public.checking for each row execute function torture.written('id');
create trigger written after insert or update on public.savings for each row execute function torture.written('id');
create trigger written after insert or update on public.list for each row execute function torture.written('key');
create trigger written after insert or update on public.receipt for each row execute function torture.written('id');

-- The cursor moves last in each batch: what is there now is what its commit shows.
create function torture.balanced() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  accounts bigint;
  total    bigint;
begin
  select count(*), sum(balance) into accounts, total from (select balance from public.checking union all select balance from public.savings) a;
  if accounts > 0 and (accounts <> tg_argv[0]::bigint or total <> tg_argv[1]::bigint) then
    insert into torture.violation (what, said) values ('unbalanced', format('batch %s: %s accounts hold %s', new.batch_no, accounts, total));
  end if;
  update torture.batch set batches = batches + 1;
  return null;
end
$$;
