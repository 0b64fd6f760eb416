-- Remove the letters of these keys (hashed) that somebody wants dropped, `page` at most at once; others of theirs came later, and
-- stay: of these the newest is to be sent, which is known before the first is gone. Where sending fails nothing else would ask for
-- them, as nothing is wrong with them.
with dropped as materialized (
  select h.id, h.table_name, k.key as hash
    from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
    join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.key
   where h.wanted = 'discard'
     and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
   limit %(page)s
), sent as (
  update outbox.held h set wanted = 'retry'
    from (select distinct d.table_name, d.hash from dropped d) k
   where h.wanted is null
     and h.id = (select n.id from outbox.held n
                  where (md5(n.key), n.table_name, n.id) >= (k.hash, k.table_name, '-9223372036854775808'::int8)
                    and (md5(n.key), n.table_name, n.id) <= (k.hash, k.table_name, 9223372036854775807)
                    and n.wanted is distinct from 'discard'
                  order by md5(n.key) desc, n.table_name desc, n.id desc limit 1)
)
delete from outbox.held h using dropped d where h.id = d.id
