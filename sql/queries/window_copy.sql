-- The end of a window, and rows as of its very snapshot: as window_open, in one transaction that keeps it.
-- A table that somebody has locked, or whose rows take long to read, can wait; changes cannot. Sent as one message: a daemon that is frozen meanwhile leaves no old snapshot open.
begin isolation level repeatable read;
set local lock_timeout = '200ms';
set local statement_timeout = '3s';
select pg_current_snapshot()::text, pg_is_in_recovery(), (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint;
select case when is_called then last_value else 0 end from outbox.change_id_seq;
select up_to_id, (select id::text from outbox.installation) from outbox.pruned;
select pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn(), (extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000,
       pg_current_wal_flush_lsn()::text;
select (select aim from outbox.aims(array[%(table)s]::text[]));
select columns, named, texts, sizes from outbox.copy_of(%(table)s::text, %(what)s::text, %(keys)s::text[], %(most)s::int, %(max_bytes)s::bigint, %(row_bytes)s::bigint);
commit
