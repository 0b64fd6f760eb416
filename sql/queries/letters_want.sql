-- Ask the relay for something, for whole keys; the ids of the letters this is about.
update outbox.held h set wanted = %(wanted)s
 where (%(ids)s::int8[] is null
        or exists (select from outbox.held n where n.id = any (%(ids)s) and n.table_name = h.table_name and md5(n.key) = md5(h.key)))
   and (%(table)s::text is null or h.table_name = %(table)s)
returning h.id
