-- A retry was refused: say why, and that nobody waits for it any more.
update outbox.held h
   set attempts = h.attempts + 1, wanted = null, sqlstate = w.sqlstate, reason = w.reason, parent_table = w.parent_table, parent_key = w.parent_key
  from unnest(%(ids)s::int8[], %(states)s::text[], %(reasons)s::text[], %(parent_tables)s::text[], %(parent_keys)s::text[])
       w(id, sqlstate, reason, parent_table, parent_key)
 where h.id = w.id
