-- Letters of a table that was out have arrived.
delete from outbox.held where id = any (%(ids)s::int8[])
