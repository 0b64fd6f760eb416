-- The first letters of a table that is out, in order, without those of keys that are held (`held`, hashed), and those that
-- nobody sends (held_left.sql): as many as `limit` and `bytes` reach.
select h.xid, h.id, h.table_name, h.op, h.shape, h.key, case when h.size <= %(row_bytes)s then h.row end, h.size, false, h.created_at
  from (select h.*, sum(case when h.size <= %(row_bytes)s then h.size else 0 end) over (order by h.id rows unbounded preceding) as so_far
          from (select h.*, coalesce(octet_length(h.row), 0) as size
                  from outbox.identities(array[%(table)s]::text[]) i join outbox.held h on h.table_name = i.table_name
                 where md5(h.key) <> all (%(held)s::text[]) and h.id not between 1 and i.since_id - 1 and h.op <> 'lost'
                   and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
                        or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
                 order by h.id limit %(limit)s) h) h
 where h.so_far - h.size < %(bytes)s
 order by h.id
