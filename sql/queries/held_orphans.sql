-- Of these keys, which the target holds, those that have no letter.
select k.table_name, k.key from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
 where not exists (select from outbox.held h where h.table_name = k.table_name and md5(h.key) = md5(k.key))
