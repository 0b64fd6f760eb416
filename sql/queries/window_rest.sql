-- What transactions that began on earlier pages left there, without what of them was sent before.
select xid, id, table_name, op, shape, key, case when octet_length(row) <= %(row_bytes)s then row end, coalesce(octet_length(row), 0), unflushed, created_at
  from unnest(%(xids)s::xid8[], %(above)s::int8[]) begun(of_xid, above)
  join outbox.change on xid = of_xid and id > above and id <= %(upto)s
 order by id
