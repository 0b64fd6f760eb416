-- Drop letters of a table that is out, every one, or as somebody wants; of keys that are held (`held`, hashed) they go another way.
delete from outbox.held h where (h.wanted = 'discard' or %(every)s) and h.table_name = %(table)s and md5(h.key) <> all (%(held)s::text[])
