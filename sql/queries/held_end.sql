-- Drop the letters of a table that is out, `page` at most at once, but for those of keys that are held (`held`, hashed): another one
-- brings its rows.
delete from outbox.held h
 where h.id in (select h.id from outbox.held h where h.table_name = %(table)s and md5(h.key) <> all (%(held)s::text[]) limit %(page)s)
