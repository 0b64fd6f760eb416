-- Age of the oldest open transaction (all that this role may see), rows and bytes of the outbox.
select coalesce((select extract(epoch from clock_timestamp() - min(xact_start)) from pg_stat_activity
                  where xact_start is not null and pid <> pg_backend_pid() and datname = current_database())::float8, 0),
       greatest((select reltuples from pg_class where oid = 'outbox.change'::regclass)::float8, 0),
       pg_total_relation_size('outbox.change')::float8,
       coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.change', 'id')::regclass), 0)
