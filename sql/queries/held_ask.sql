-- Have the letters of these keys sent again.
update outbox.held h set wanted = 'retry'
  from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
 where h.table_name = k.table_name and md5(h.key) = md5(k.key) and h.wanted is null
