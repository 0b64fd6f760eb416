-- Letters that wait for a row they refer to: a table has been copied, the row may have come.
update outbox.held set wanted = 'retry' where sqlstate = '23503' and wanted is null
