-- The first changes of a narrow window, found by transaction: a long-running transaction that holds the
-- floor back costs nothing here. %(running)s are the transactions still running at the window's start.
select xid, id, table_name, op, shape, key, row, coalesce(octet_length(row), 0), unflushed, created_at
  from (select c.*, sum(octet_length(c.row)) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select * from outbox.change c
                 where ((c.xid >= %(from_xmax)s::xid8 and c.xid < %(to_xmax)s::xid8) or c.xid = any (%(running)s::xid8[]))
                   and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
                   and pg_visible_in_snapshot(c.xid, %(to_snapshot)s::pg_snapshot)
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id
