select (select system_identifier from pg_control_system())::text, pg_is_in_recovery(),
       current_setting('server_version_num')::int,
       (select s.seqcache from pg_sequence s where s.seqrelid = 'outbox.change_id_seq'::regclass),
       current_setting('max_prepared_transactions')::int,
       (select max(version) from outbox.migration)
