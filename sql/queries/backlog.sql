-- How much waits behind a cursor, and since when: exact up to the limit. Rows of a transaction still open are
-- invisible and yet would cost a look each: such transactions are left out first.
select count(*), coalesce((extract(epoch from clock_timestamp() - min(created_at)))::float8, 0)
  from (select c.created_at from outbox.change c
         where c.xid >= %(from_xmax)s::xid8 and c.xid < pg_snapshot_xmax(pg_current_snapshot())
        union all
        select c.created_at from unnest(%(running)s::xid8[]) run(xid) join outbox.change c on c.xid = run.xid
         where pg_visible_in_snapshot(run.xid, pg_current_snapshot())
         limit %(limit)s) waiting
