-- Columns of a table, as the target calls them, that once travelled and now do not.
select unnest(outbox.left_home(w)) from outbox.watched w where w.table_name = %(table)s
