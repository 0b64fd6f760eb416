-- Tables whose rows have changed without a trigger that says so: a copy of each is wanted from here on.
select outbox.notice(null::text)
