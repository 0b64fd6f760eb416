-- Write a heartbeat, unless one is on its way: when the last was written (Unix time, by the source's clock).
select extract(epoch from written_at)::float8 from outbox.heartbeat(%(relay)s::text, %(epoch)s::bigint, %(snapshot)s::text)
