-- Of some transactions of the window: those that have changes beyond the page, and the id of their last.
select c.xid, max(c.id)
  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
  join outbox.change c on c.xid >= run.first and c.xid <= run.last
 where c.id > %(upto)s and c.id <= %(ceiling)s
 group by c.xid
