-- The end of a window. Four statements in one round trip; their order matters.
-- Read committed, whatever the role's default: each statement must see with its own snapshot.
--  1. the snapshot. Only the primary's names what has durably committed. And since when this server runs: behind a
--     pooler it may be another one than before.
--  2. ceiling: an id at or above everything the snapshot sees. The sequence is read as a relation, which fails
--     without the right to: pg_sequence_last_value would say null, as for an outbox nobody has written to.
--  3. the highest id that prune has removed: the window must begin above it. And of which outbox: one that was installed
--     anew counts from the beginning.
--  4. is the log on disk as far as it was written just after the snapshot? If so, the snapshot is durable.
begin isolation level read committed;
select pg_current_snapshot()::text, pg_is_in_recovery(), (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint;
select case when is_called then last_value else 0 end from outbox.change_id_seq;
select up_to_id, (select id::text from outbox.installation) from outbox.pruned;
select pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn(), (extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000,
       pg_current_wal_flush_lsn()::text;
commit
