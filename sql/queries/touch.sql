-- Record this row as changed, as it is now: durably, before the target's cursor passes the copy of it. One row a
-- transaction: whoever locks several in an order of its own may find the application's locks in its way, and be in theirs.
begin isolation level read committed;
set local synchronous_commit = on;
set local lock_timeout = '2s';
select count(*) from outbox.copy_of(%(table)s::text, 'touch'::text, array[%(key)s]::text[], 0, 0::bigint, %(row_bytes)s::bigint);
commit
