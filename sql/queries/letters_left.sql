-- Of these letters those that are still there: is the relay still to do something about it, and what does it say?
select h.id, h.wanted is not null, h.sqlstate is not null, h.table_name, h.reason from outbox.held h where h.id = any (%(ids)s) order by h.id
