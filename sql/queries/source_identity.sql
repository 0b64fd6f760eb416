-- What this server and this database are, and what its databases are called. The control file names the timeline only
-- after the next checkpoint, the log at once.
select (select system_identifier from pg_control_system())::text, pg_is_in_recovery(),
       current_setting('server_version_num')::int,
       (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.change_id_seq'::regclass),
       current_setting('max_prepared_transactions')::int,
       (select coalesce(max(version), 0) from outbox.migration),
       case when pg_is_in_recovery() then 0
            else ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int end,
       (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint, pg_backend_pid(),
       (select d.oid::int8 from pg_database d where d.datname = current_database()),
       (select coalesce(min(i.id::text), '') from outbox.installation i),
       (select json_object_agg(d.oid, d.datname) from pg_database d)
