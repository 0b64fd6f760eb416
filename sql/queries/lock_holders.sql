-- Who holds what this waited for: the table itself, as a person writes it, or what outboxd takes turns by. Those who only read
-- come last: most waits are not for them.
select string_agg(n.who, ', ')
  from (select l.pid, l.virtualtransaction, bool_and(l.mode = 'AccessShareLock') as reads from pg_locks l
         where l.granted and l.pid is distinct from pg_backend_pid() and l.database = (select d.oid from pg_database d where d.datname = current_database())
           and (l.locktype = 'relation' and exists (
                  select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                   where c.oid = l.relation and (format('%%I.%%I', n.nspname, c.relname) = %(about)s
                                                 or n.nspname in ('outbox', 'outboxd') and c.relname in ('turn', 'migration') and l.mode <> 'AccessShareLock'))
                or l.locktype = 'advisory' and l.classid = 1869968482 and l.objid = 0 and l.objsubid = 2)
         group by l.pid, l.virtualtransaction order by reads, l.pid limit 3) l
 cross join lateral (
   select case when l.pid is null then 'a prepared transaction: pg_prepared_xacts names it'
               else (select format('pid %%s (role %%s, %%s): select pg_terminate_backend(%%s) ends it', l.pid, a.usename, coalesce(nullif(a.application_name, ''), 'without a name'), l.pid)
                       from pg_stat_activity a where a.pid = l.pid) end as who) n
