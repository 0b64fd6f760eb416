-- The next changes of a window as window_by_id.sql has them, when none has a row of more than `row_bytes`, which is so few
-- that `limit` of them cannot be too many: no running sum is needed, which is a quarter of that query's time. A larger
-- row is not fetched here; who finds one asks window_by_id.sql (daemon/pages.py).
select c.table_name::varchar, c.op::varchar, c.shape, bool_or(c.unflushed),
       string_agg(int8send(c.id) || xid8send(c.xid) || timestamptz_send(c.created_at) || int8send(c.size::int8), '' order by c.id),
       string_agg(c.key, e'\x1d' order by c.id), string_agg(case when c.fetched then c.row end, e'\x1d' order by c.id)
  from (select c.*, coalesce(octet_length(c.row), 0) as size, coalesce(octet_length(c.row) <= %(row_bytes)s, false) as fetched
          from outbox.change c
         where c.id > %(after)s and c.id <= %(upto)s
           and not pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
           and pg_visible_in_snapshot(c.xid, %(to_snapshot)s::pg_snapshot)
         order by c.id
         limit %(limit)s) c
 group by c.id >> 8, c.shape, c.op, c.table_name, c.fetched
 order by c.id >> 8
