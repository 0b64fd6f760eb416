-- Transactions of the window, up to the highest one on the page, that have changes beyond the page, with the
-- id of their last one.
select xid, max(id)
  from outbox.change c
 where ((xid >= %(from_xmax)s::xid8 and xid <= %(page_xid)s::xid8) or xid = any (%(running)s::xid8[]))
   and xid <> all (%(pending)s::xid8[])
   and id > %(page_end)s and id <= %(ceiling)s
   and not pg_visible_in_snapshot(xid, %(from_snapshot)s::pg_snapshot)
   and pg_visible_in_snapshot(xid, %(to_snapshot)s::pg_snapshot)
 group by xid
