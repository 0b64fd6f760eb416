-- Record these rows as changed, as they are now: durably, before the target's cursor passes the copy of them.
begin isolation level read committed;
set local synchronous_commit = on;
set local lock_timeout = '2s';
select count(*) from outbox.copy_of(%(table)s, 'touch', %(keys)s, 0, 0, %(row_bytes)s);
commit
