-- Age of the oldest open transaction (all that this role may see, and prepared ones), rows and bytes of the outbox,
-- highest id drawn.
select coalesce((select extract(epoch from clock_timestamp() - min(begun))
                   from (select xact_start as begun from pg_stat_activity where pid <> pg_backend_pid() and datname = current_database()
                         union all select prepared from pg_prepared_xacts where database = current_database()) open)::float8, 0),
       slots.rows,
       slots.bytes,
       coalesce(pg_sequence_last_value('outbox.change_id_seq'), 0)
  from (select coalesce(sum(pg_stat_get_live_tuples(i.inhrelid)), 0)::float8 as rows,
               coalesce(sum(pg_total_relation_size(i.inhrelid)), 0)::float8 as bytes
          from pg_inherits i where i.inhparent = 'outbox.change'::regclass) slots
