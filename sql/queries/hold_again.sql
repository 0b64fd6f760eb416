-- A retry was refused: say why, and that nobody waits for it any more. Other letters of the same keys wait behind these.
with again as (
  update outbox.held h
     set attempts = h.attempts + 1, wanted = null, key = w.key, sqlstate = w.sqlstate, reason = w.reason, parent_table = w.parent_table, parent_key = w.parent_key
    from unnest(%(ids)s::int8[], %(keys)s::text[], %(states)s::text[], %(reasons)s::text[], %(parent_tables)s::text[], %(parent_keys)s::text[])
         w(id, key, sqlstate, reason, parent_table, parent_key)
   where h.id = w.id
  returning h.table_name, md5(h.key) as hash
)
update outbox.held h set wanted = null, sqlstate = null, reason = %(behind)s, parent_table = null, parent_key = null
  from (select distinct table_name, hash from again) a
 where h.table_name = a.table_name and md5(h.key) = a.hash and h.id <> all (%(ids)s::int8[])
   and (h.wanted = 'retry' or h.sqlstate is not null)
