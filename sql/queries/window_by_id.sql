-- The next changes of a window in a stretch of ids: each page begins where the last one ended.
--
-- They come in sheaves: those of one table, operation and shape side by side, between them U+001D, which JSON cannot have.
-- Each has their keys, their rows (none that is larger than `row_bytes`), and of each four numbers: id, transaction,
-- time, bytes of its row. A sheaf is of 256 ids at most: what is joined at once stays small, which is quicker, too.
-- Promise I4: the order of ids is stated in each sheaf. A plan is free to hand rows to an aggregate as it likes.
select c.table_name::varchar, c.op::varchar, c.shape, bool_or(c.unflushed),
       string_agg(int8send(c.id) || xid8send(c.xid) || timestamptz_send(c.created_at) || int8send(c.size::int8), '' order by c.id),
       string_agg(c.key, e'\x1d' order by c.id), string_agg(case when c.fetched then c.row end, e'\x1d' order by c.id)
  from (select c.*, sum(case when c.fetched then c.size end) over (order by c.id rows unbounded preceding) as so_far
          from (select c.*, coalesce(octet_length(c.row), 0) as size, coalesce(octet_length(c.row) <= %(row_bytes)s, false) as fetched
                  from outbox.change c
                 where c.id > %(after)s and c.id <= %(upto)s
                   and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
                   and pg_visible_in_snapshot(c.xid, %(to_snapshot)s::pg_snapshot)
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.so_far, 0) - case when c.fetched then c.size else 0 end < %(bytes)s
 group by c.id >> 8, c.shape, c.op, c.table_name, c.fetched
 order by c.id >> 8
