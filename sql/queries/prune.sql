-- Sent as one message: a daemon that is frozen meanwhile keeps no slot locked. Each statement in the function must
-- see with its own snapshot, whatever the role's default.
begin isolation level read committed;
select emptied, up_to_id, locked, rotated, holder from outbox.prune(%(floor_id)s::bigint, make_interval(secs => %(retention)s));
commit
