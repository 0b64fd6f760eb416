-- The first changes of a window, found by transaction: one that has been open for hours and holds the floor
-- back costs nothing here. The runs name exactly the transactions of the window (daemon/snapshot.py). In sheaves: see
-- window_by_id.sql.
select c.table_name::varchar, c.op::varchar, c.shape, bool_or(c.unflushed),
       string_agg(int8send(c.id) || xid8send(c.xid) || timestamptz_send(c.created_at) || int8send(c.size::int8), '' order by c.id),
       string_agg(c.key, e'\x1d' order by c.id), string_agg(case when c.fetched then c.row end, e'\x1d' order by c.id)
  from (select c.*, sum(case when c.fetched then c.size end) over (order by c.id rows unbounded preceding) as so_far
          from (select c.*, coalesce(octet_length(c.row), 0) as size, coalesce(octet_length(c.row) <= %(row_bytes)s, false) as fetched
                  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
                  join outbox.change c on c.xid >= run.first and c.xid <= run.last
                 where c.id > %(after)s and c.id <= %(upto)s
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.so_far, 0) - case when c.fetched then c.size else 0 end < %(bytes)s
 group by c.id >> 8, c.shape, c.op, c.table_name, c.fetched
 order by c.id >> 8
