-- Remove the letters of these keys (hashed) that somebody wants dropped, `page` at most at once; others of theirs came later, and stay.
delete from outbox.held h
 where h.id in (
   select h.id from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
     join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.key
    where h.wanted = 'discard'
      and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
           or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
    limit %(page)s)
