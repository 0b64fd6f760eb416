-- Changes of a table that were skipped while it was out, for a copy was to bring their rows, and now none will: they become
-- letters. What the cursor has passed, and had not passed when the table went out (`from_...`).
insert into outbox.held (id, xid, table_name, op, shape, key, row, headers, created_at, sqlstate, reason)
select c.id, c.xid, c.table_name, c.op, c.shape, c.key, c.row, c.headers, c.created_at, %(state)s, %(reason)s
  from outbox.change c
 where c.table_name = %(table)s
   and (pg_visible_in_snapshot(c.xid, %(snapshot)s::pg_snapshot)
        or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = c.xid and c.id <= t.upto))
   and not (pg_visible_in_snapshot(c.xid, %(from_snapshot)s::pg_snapshot)
            or exists (select from unnest(%(from_torn)s::xid8[], %(from_upto)s::int8[]) t(xid, upto) where t.xid = c.xid and c.id <= t.upto))
on conflict (id) do nothing
