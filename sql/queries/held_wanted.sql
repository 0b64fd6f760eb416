-- All dead letters of keys for which a person wants something, in order; whole keys, up to a limit of letters. What
-- the target's cursor has not passed is still to be read, and not yet a letter of its key.
select h.xid, h.id, h.table_name, h.op, h.shape, h.key, case when coalesce(octet_length(h.row), 0) <= %(row_bytes)s then h.row end,
       coalesce(octet_length(h.row), 0), false, h.created_at, k.wanted = 'discard'
  from (select w.table_name, w.key, min(w.wanted) as wanted from outbox.held w where w.wanted is not null
         group by 1, 2 order by min(w.id) limit %(limit)s) k
  join outbox.held h on h.table_name = k.table_name and md5(h.key) = md5(k.key)
 where pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
    or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto)
 order by h.id
