-- Heartbeats: the last that has arrived here, one row a relay. They come with batches, in their transactions.

create table if not exists outboxd.heartbeat (
  relay      text primary key,
  written_at timestamptz not null,
  arrived_at timestamptz not null
);

comment on column outboxd.heartbeat.written_at is 'by the source''s clock';
comment on column outboxd.heartbeat.arrived_at is 'by this server''s clock';

revoke all on outboxd.heartbeat from public;

-- Record one; whether it was. It never stands in the way of the rows beside it: whatever is the matter with its table,
-- a lock too, it is left out, the answer says so, and that no heartbeat arrives is noticed.
create or replace function outboxd.note_heartbeat(relay_name text, entries json) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  lock table only outboxd.heartbeat in row exclusive mode nowait;
  perform from outboxd.heartbeat h where h.relay = relay_name for update nowait;
  insert into outboxd.heartbeat as h (relay, written_at, arrived_at)
  values (relay_name, (entries -> 0 ->> 'written_at')::timestamptz, clock_timestamp())
  on conflict (relay) do update set written_at = excluded.written_at, arrived_at = excluded.arrived_at;
  return true;
exception when others then
  return false;
end
$$;

-- The last one, as Unix times; an empty object before the first. Null: they cannot be kept here, so none is to be sent.
create or replace function outboxd.last_heartbeat(relay_name text) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce((
    select json_build_object('written_at', extract(epoch from h.written_at), 'arrived_at', extract(epoch from h.arrived_at),
                             'seconds_ago', extract(epoch from clock_timestamp() - h.arrived_at))
      from outboxd.heartbeat h where h.relay = relay_name), '{}');
exception when undefined_table or undefined_column or lock_not_available then
  return null;
end
$$;

revoke all on function outboxd.note_heartbeat(text, json), outboxd.last_heartbeat(text) from public;
