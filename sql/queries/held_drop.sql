-- Drop letters of a table that is out, as somebody wants, `page` at most at once; of keys that are held (`held`, hashed) they go another way.
delete from outbox.held h
 where h.id in (select h.id from outbox.held h where h.wanted = 'discard' and h.table_name = %(table)s and md5(h.key) <> all (%(held)s::text[]) limit %(page)s)
