-- Letters of attempts that came to nothing: the changes have been accepted now, or with them a row of that key, which is the end
-- of a letter that is no change. The target's cursor has passed them, so that no such attempt can arrive any more. `keys`: hashed.
with arrived as (
  select unnest(%(ids)s::int8[]) as id
  union
  select h.id from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
    join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.key and h.id < 0
), gone as (
  delete from outbox.held h
   using arrived a
   where h.id = a.id
     and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
  returning h.id
)
select count(*) from gone
