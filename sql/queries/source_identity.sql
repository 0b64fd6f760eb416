-- What this server is. The control file names the timeline only after the next checkpoint, the log at once.
select (select system_identifier from pg_control_system())::text, pg_is_in_recovery(),
       current_setting('server_version_num')::int,
       (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.change_id_seq'::regclass),
       current_setting('max_prepared_transactions')::int,
       (select coalesce(max(version), 0) from outbox.migration),
       case when pg_is_in_recovery() then 0
            else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
       (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, pg_backend_pid()
