-- Verifying tables: who wants it. The rows are read by the functions that read them for a copy (0008).

-- What somebody has asked for, the newest wish of each table. The target keeps the number of the one that was fulfilled.
create table if not exists outbox.verification (
  table_name text primary key,
  wish       bigint not null,
  repair     bigint not null,
  asked_at   timestamptz not null default clock_timestamp()
);

comment on column outbox.verification.repair is 'number of the newest wish to repair, 0: none; wishes add up (0008)';
comment on table outbox.verification is 'Tables that are to be compared with the target now: `outboxd verify`; the relay does it';

-- Ask the relay to verify a watched table; returns the number of the wish. `repair`: rows that differ are written again.
create or replace function outbox.ask_verification(table_name text, repair boolean default false) returns bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  w outbox.watched := outbox.known(table_name);
  n bigint;
begin
  if not w.capture then
    raise exception '% is emitted by the application: its rows are not known here, so there is nothing to compare', w.table_name
      using errcode = 'invalid_parameter_value';
  end if;
  insert into outbox.verification as v (table_name, wish, repair)
  select w.table_name, k.n, case when ask_verification.repair then k.n else 0 end from (select outbox.next_wish() as n) k
  on conflict on constraint verification_pkey do update
     set wish = greatest(excluded.wish, v.wish + 1), asked_at = excluded.asked_at,
         repair = case when ask_verification.repair then greatest(excluded.wish, v.wish + 1) else v.repair end
  returning wish into n;
  perform outbox.ring();
  return n;
end
$$;

revoke all on function outbox.ask_verification(text, boolean) from public;
