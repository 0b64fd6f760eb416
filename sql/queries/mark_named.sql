-- Some changes by name: is each there as it was, or has something else its id or its transaction's?
select e.id,
       exists (select from outbox.change c
                where c.xid = e.xid and c.id = e.id and (extract(epoch from c.created_at) * 1000000)::bigint - 946684800000000 = e.at),
       exists (select from outbox.change c where c.id = e.id or c.xid = e.xid)
  from unnest(%(xids)s::xid8[], %(ids)s::int8[], %(times)s::int8[]) e(xid, id, at)
