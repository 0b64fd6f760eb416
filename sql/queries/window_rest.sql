-- Changes of transactions that began on earlier pages and are complete now.
select xid, id, table_name, op, shape, key, row, coalesce(octet_length(row), 0), unflushed, created_at
  from outbox.change
 where xid = any (%(xids)s::xid8[]) and id <= %(upto)s
 order by id
