-- Of these tables those whose refused changes halt the relay.
select table_name from outbox.watched where table_name = any (%(tables)s) and on_error = 'halt'
