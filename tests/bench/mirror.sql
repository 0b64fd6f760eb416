-- On the target, beside the example application's mirror.

create table "Wide" (
  "id" bigint primary key, "a" text, "b" text, "c" text, "d" text, "e" text, "f" text, "g" text, "h" text, "i" text, "j" text,
  "k" int, "l" int, "m" bigint, "n" numeric(12, 3), "o" boolean, "p" timestamptz, "q" uuid, "r" jsonb, "s" text[]
);

alter table "Wide" enable row level security;
grant select, insert, update, delete on "Wide" to service_role;

-- When a row of native replication arrives: its worker stamps its commits with the source's time, so tests/bench/steady.py
-- asks this. Written a moment before the commit, which waits for no flush there. Off until it is asked for.
create schema bench;
create table bench.arrival (id text not null, at timestamptz not null default clock_timestamp());

create function bench.arrived() returns trigger language plpgsql as $$
begin
  insert into bench.arrival (id) values (new.id);
  return null;
end
$$;

create trigger arrived after insert on "Story" for each row execute function bench.arrived();
alter table "Story" disable trigger arrived;
