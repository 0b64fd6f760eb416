-- Are there letters of a table that is out, but for those of keys that are held (`held`, hashed)?
select exists (select from outbox.held h where h.table_name = %(table)s and md5(h.key) <> all (%(held)s::text[]))
