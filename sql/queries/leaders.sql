-- The daemons of this database, by the sessions of their bells: which leads, and since when, and who cannot lead (a lock of
-- theirs says so). Only sessions of roles that may lead: a name is anybody's. Every role sees other roles' sessions.
with held as materialized (
  select pid, bool_or(classid = 1869968483 and mode = 'ExclusiveLock' and objid = (select key from outbox.leadership)::oid) as leads, bool_or(classid = 1869968484) as aside
    from pg_locks
   where locktype = 'advisory' and objsubid = 2 and granted and classid in (1869968483, 1869968484)
     and database = (select oid from pg_database where datname = current_database())
   group by pid
)
select a.application_name, a.pid, coalesce(h.leads, false),
       (select to_char(k.since at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') from outbox.leadership k where h.leads),
       coalesce(h.aside, false)
  from pg_stat_activity a
  left join held h using (pid)
 where a.datname = current_database() and (h.leads or a.application_name ~ '^outboxd/\S+ bell( |$)') and outbox.may_lead(a.usesysid)
 order by a.application_name, a.pid
