-- The daemons of this database, by the sessions of their bells: whose has the leader's lock, and since when (the number
-- of a second lock of that session is the time), and who cannot lead (a third one). Every role sees all of this, other roles' sessions included.
with held as materialized (
  select pid, bool_or(classid = 1869968482 and objid = 2) as leads,
         max(objid::bigint) filter (where classid = 1869968483) as since,
         bool_or(classid = 1869968484) as aside
    from pg_locks
   where locktype = 'advisory' and objsubid = 2 and granted and classid in (1869968482, 1869968483, 1869968484)
     and database = (select oid from pg_database where datname = current_database())
   group by pid
)
select a.application_name, a.pid, coalesce(h.leads, false),
       to_char(to_timestamp(h.since) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
       coalesce(h.aside, false)
  from pg_stat_activity a
  left join held h using (pid)
 where a.datname = current_database() and (h.leads or a.application_name ~ '^outboxd/\S+ bell( |$)')
 order by a.application_name, a.pid
