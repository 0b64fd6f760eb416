-- Of some transactions of the window: those that have changes beyond the page, and the id of their last. (By the index on
-- xid: with both ends of the ids at hand, and no statistics yet, Postgres would go through all that is left.)
select c.xid, max(c.id)
  from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
 cross join lateral (select c.xid, c.id from outbox.change c where c.xid >= run.first and c.xid <= run.last and c.id > %(upto)s offset 0) c
 where c.id <= %(ceiling)s
 group by c.xid
