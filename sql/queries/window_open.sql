-- The end of a window, in one round trip; the order matters.
-- Read committed, whatever the role's default: each statement must see with its own snapshot.
--  1. the snapshot. Only the primary's names what has durably committed.
--  2. ceiling: an id at or above everything the snapshot sees.
--  3. was everything the snapshot sees on disk just after it; and the source's clock.
begin isolation level read committed;
select pg_current_snapshot()::text, pg_is_in_recovery();
select coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox.change', 'id')::regclass), 0);
select pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn(), (extract(epoch from clock_timestamp()) * 1000000)::bigint;
commit
