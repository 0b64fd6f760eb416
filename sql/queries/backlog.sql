-- How much waits behind a cursor, and since when: exact up to the limit.
select count(*), coalesce((extract(epoch from clock_timestamp() - min(created_at)))::float8, 0)
  from (select created_at from outbox.change c
         where ((c.xid >= %(from_xmax)s::xid8 and c.xid < pg_snapshot_xmax(pg_current_snapshot())) or c.xid = any (%(running)s::xid8[]))
           and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
         limit %(limit)s) waiting
