-- What of these tables decides which of their letters still mean something.
select table_name, watched, keys, columns, aim from outbox.identities(%(tables)s)
