select id, columns from outbox.shape where id = any (%(ids)s)
