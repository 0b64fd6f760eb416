-- The next changes of a window in a stretch of ids: each page begins where the last one ended.
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from (select c.*, sum(case when octet_length(c.row) <= %(row_bytes)s then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
          from (select * from outbox.change c
                 where c.id > %(after)s and c.id <= %(upto)s
                   and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
                   and pg_visible_in_snapshot(c.xid, %(to_snapshot)s::pg_snapshot)
                 order by c.id
                 limit %(limit)s) c) c
 where coalesce(c.before, 0) < %(bytes)s
 order by id
