-- Heartbeat: a change of nobody's, written now and then, so that it shows how long a change takes when nothing is written.
--
-- It travels as any change does, under a reserved name that no table can be watched or mapped by: `outboxd.heartbeat`.

alter table outbox.relay add column if not exists heartbeat_id bigint;

comment on column outbox.relay.heartbeat_id is 'The last heartbeat: id of its change. Another is written once the target has passed it';

-- Write one, unless the last is still on its way: an outage leaves one row, not thousands. Its change itself is looked
-- at, so that this also holds after the outbox was restored, restamped or pruned.
--
-- `snapshot` is that of the cursor the target has stated. Null: it has not been asked yet; then where it last stood
-- counts, and none is the first of its relay, for the target may know no heartbeats. `epoch` 0: not claimed yet.
-- Whoever has been fenced off since writes none.
create or replace function outbox.heartbeat(
  relay text, epoch bigint, snapshot text, out written_at timestamptz, out is_new boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO, YMD'
as $$
declare
  r outbox.relay;
  passed boolean;
begin
  select * into r from outbox.relay k where k.relay = heartbeat.relay for update;
  if not found or (heartbeat.epoch > 0 and r.epoch > heartbeat.epoch) then
    return;
  end if;
  select c.created_at, pg_visible_in_snapshot(c.xid, coalesce(heartbeat.snapshot, r.snapshot)::pg_snapshot)
    into written_at, passed from outbox.change c where c.id = r.heartbeat_id and c.table_name = 'outboxd.heartbeat';
  is_new := not found and (heartbeat.snapshot is not null or r.heartbeat_id is not null) or coalesce(passed, false);
  if is_new then
    written_at := clock_timestamp();
    insert into outbox.change (table_name, op, shape, key, row, created_at)
    values ('outboxd.heartbeat', 'upsert', outbox.shape_of('outboxd.heartbeat', array['relay', 'written_at']),
            json_build_object('relay', heartbeat.relay), json_build_object('relay', heartbeat.relay, 'written_at', written_at), written_at)
    returning id into r.heartbeat_id;
    update outbox.relay k set heartbeat_id = r.heartbeat_id where k.relay = heartbeat.relay;
    perform outbox.ring();
  end if;
end
$$;

revoke all on function outbox.heartbeat(text, bigint, text) from public;
