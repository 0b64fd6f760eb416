-- The first changes of a window, found by transaction: one that has been open for hours and holds the floor
-- back costs nothing here. The runs name exactly the transactions of the window (daemon/snapshot.py).
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from (select c.*, sum(case when octet_length(c.row) <= %(row_bytes)s then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select c.*
                  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
                  join outbox.change c on c.xid >= run.first and c.xid <= run.last
                 where c.id > %(after)s and c.id <= %(upto)s
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id
