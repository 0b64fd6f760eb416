-- Copy changes to the dead letters; again: say anew why. `keys`: as the target spells them, where that is known.
insert into outbox.held as h (id, xid, table_name, op, shape, key, row, headers, created_at, sqlstate, reason, parent_table, parent_key)
select c.id, c.xid, c.table_name, c.op, c.shape, coalesce(w.key, c.key), c.row, c.headers, c.created_at, w.sqlstate, w.reason, w.parent_table, w.parent_key
  from unnest(%(xids)s::xid8[], %(ids)s::int8[], %(keys)s::text[], %(states)s::text[], %(reasons)s::text[], %(parent_tables)s::text[], %(parent_keys)s::text[])
       w(xid, id, key, sqlstate, reason, parent_table, parent_key)
  join outbox.change c on c.xid = w.xid and c.id = w.id
on conflict (id) do update
   set key = excluded.key, sqlstate = excluded.sqlstate, reason = excluded.reason, parent_table = excluded.parent_table, parent_key = excluded.parent_key
