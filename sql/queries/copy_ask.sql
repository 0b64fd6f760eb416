-- A copy of a table from the beginning, after which the target has no other rows than the source.
select outbox.ask_copy(%(table)s::text, true, true)
