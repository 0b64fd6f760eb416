-- What goes with schema outbox: watched tables, changes that the target may not have, as far as the source was told
-- (at most a minute ago), dead letters; and does a daemon lead at this moment?
select (select coalesce(array_agg(w.table_name order by w.table_name), '{}') from outbox.watched w),
       (select count(*) from (
          select from outbox.change c
           where c.table_name <> 'outboxd.heartbeat' and coalesce((select bool_or(not pg_visible_in_snapshot(c.xid, r.snapshot::pg_snapshot)) from outbox.relay r), true)
           limit 100000) waiting),
       (select count(*) from outbox.held),
       exists (select from pg_locks l join pg_database d on d.oid = l.database join pg_stat_activity a on a.pid = l.pid
                where d.datname = current_database() and l.locktype = 'advisory' and l.classid = 1869968483 and l.granted
                  and l.mode = 'ExclusiveLock' and l.objid = (select k.key from outbox.leadership k)::oid and outbox.may_lead(a.usesysid))
