-- Who has, on the target, the lock by which `schema apply` takes turns; and is it somebody who may not apply anything?
select a.pid, format('pid %%s (role %%s, %%s)', a.pid, a.usename, coalesce(nullif(a.application_name, ''), 'without a name')),
       not coalesce(pg_has_role(a.usesysid, (select n.nspowner from pg_namespace n where n.nspname = 'outboxd'), 'member'), false)
  from pg_locks l join pg_stat_activity a using (pid)
 where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and (l.classid, l.objid) = (%(class)s::oid, %(number)s::oid)
   and l.database = (select d.oid from pg_database d where d.datname = current_database())
 order by 1 limit 1
