-- The window after one that was read to its end, and its changes, in one message: what a relay does that is up to date.
-- The statements of window_open.sql, in their order; in between, by a transaction that sees what the snapshot sees:
--  *. the changes. The runs name the transactions that the last window did not see, the last run has no end: whatever is
--     visible here is in the window. What still runs is not looked for, it may have written much. (`offset 0`: each run
--     by the index on xid.) None when more ids were drawn than `deep`: all would be sorted, and are better read in
--     stretches. The ceiling is read after this, so one that is not above `deep` says that these were all.
--  *. only then what was pruned: TRUNCATE takes rows from older snapshots, too.
begin isolation level repeatable read;
select pg_current_snapshot()::text, pg_is_in_recovery(), (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint;
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed,
       (extract(epoch from created_at) * 1000000)::bigint - 946684800000000
  from (select c.*, sum(case when octet_length(c.row) <= %(row_bytes)s then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select c.*
                  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
                 cross join lateral (select * from outbox.change c where c.xid >= run.first and c.xid <= run.last and c.id > %(after)s offset 0) c
                 where (run.first < run.last or pg_visible_in_snapshot(run.first, pg_current_snapshot()))
                   and (select case when is_called then last_value else 0 end from outbox.change_id_seq) <= %(deep)s
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id;
select case when is_called then last_value else 0 end from outbox.change_id_seq;
commit;
select up_to_id from outbox.pruned;
select pg_current_wal_insert_lsn() <= pg_current_wal_flush_lsn(), (extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000,
       pg_current_wal_flush_lsn()::text
