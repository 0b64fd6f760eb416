-- What the source remembers of the target: where it last stood, so that one restored from a backup is recognised.

create table if not exists outbox.relay (
  relay        text primary key,
  epoch        bigint not null,
  batch_no     bigint not null,
  snapshot     text,
  confirmed_at timestamptz not null default now()
);

comment on table outbox.relay is 'Where each relay''s target last stood: written when a relay claims it, and once a minute at most';

comment on column outbox.relay.snapshot is 'That of the cursor then; what waits is counted from it while the target cannot be asked';

-- Epochs only grow, also when the target's own went back. A role that may only read calls this.
create or replace function outbox.confirm(relay text, epoch bigint, batch_no bigint, snapshot text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into outbox.relay as r (relay, epoch, batch_no, snapshot)
  values (confirm.relay, confirm.epoch, confirm.batch_no, confirm.snapshot)
  on conflict on constraint relay_pkey do update
     set epoch = greatest(r.epoch, excluded.epoch), batch_no = excluded.batch_no, snapshot = excluded.snapshot,
         confirmed_at = now();
end
$$;

revoke all on function outbox.confirm(text, bigint, bigint, text) from public;
