-- The letters of the keys that these letters belong to, the first of them; their values only where they are to be shown.
select h.id, h.table_name, h.op, h.key, case when %(values)s then h.row end, case when %(values)s then h.headers end, h.created_at::text, h.held_at::text, h.sqlstate, h.reason, h.attempts, h.wanted,
       coalesce(octet_length(h.row), 0)
  from outbox.held h
 where exists (select from outbox.held n where n.id = any (%(ids)s) and n.table_name = h.table_name and md5(n.key) = md5(h.key))
 order by h.table_name, md5(h.key), h.id
 limit %(limit)s
