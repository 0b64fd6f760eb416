-- Drop letters of a table that is out, as somebody wants; of keys that are held (`held`, hashed) they go another way.
delete from outbox.held h where h.wanted = 'discard' and h.table_name = %(table)s and md5(h.key) <> all (%(held)s::text[])
