-- Make letters again of what the outbox still has of a table that only the application fills, and the target's cursor has passed: of
-- these keys, or (null) of all. What came before its last TRUNCATE is of no row any more. Changes of a row that were
-- applied already come once more before those that follow them: the row ends the same.
insert into outbox.held (id, xid, table_name, op, shape, key, row, headers, created_at, sqlstate, reason, wanted)
select c.id, c.xid, c.table_name, c.op, c.shape, coalesce(k.key, c.key), c.row, c.headers, c.created_at, %(state)s, %(reason)s, 'retry'
  from outbox.change c left join unnest(%(keys)s::text[]) k(key) on k.key::jsonb = c.key::jsonb
 where c.table_name = %(table)s and c.op in ('upsert', 'delete') and (%(keys)s::text[] is null or k.key is not null)
   and (pg_visible_in_snapshot(c.xid, %(snapshot)s::pg_snapshot)
        or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = c.xid and c.id <= t.upto))
   and c.id > all (select n.id from outbox.change n where n.table_name = %(table)s and n.op = 'truncate')
on conflict (id) do nothing
