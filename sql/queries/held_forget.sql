-- Remove the letters of these keys that the target's cursor has passed (up to `last`, where that is given: what came later was not
-- sent), `page` at most at once, and wake the letters that waited
-- for one of them: children of a parent that has arrived. A letter that is no change (its id is below 0) can be made again by
-- nobody: where an attempt came to nothing, it stays for as long as that attempt might still arrive.
with gone as (
  delete from outbox.held h
   where h.id in (
     select h.id from unnest(%(tables)s::text[], %(keys)s::text[], %(last)s::int8[]) k(table_name, key, last)
       join outbox.held h on h.table_name = k.table_name and md5(h.key) = md5(k.key) and (k.last is null or h.id <= k.last)
      where (%(wake)s or h.id > 0 or h.held_at < clock_timestamp() - interval '5 minutes')
        and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
             or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
      limit %(page)s)
  returning h.id
), woken as (
  update outbox.held h set wanted = 'retry'
    from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
   where h.parent_table = k.table_name and md5(h.parent_key) = md5(k.key) and h.wanted is null and %(wake)s
     and h.id not in (select id from gone)
  returning h.id
)
select (select count(*) from gone), (select count(*) from woken)
