-- What of these tables decides which of their letters still mean something.
select table_name, watched, keys, columns, aim, sure, left_over from outbox.identities(%(tables)s::text[])
