-- Watched tables that nobody can read, by the catalogue alone: who has them, a partition or an index of theirs locked? Or waits for
-- that lock, which is as good: whoever comes later waits behind.
with recursive held as materialized (
  select distinct l.relation, l.pid, l.virtualtransaction from pg_catalog.pg_locks l
   where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.pid is distinct from pg_backend_pid()
     and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
), above as (
  select coalesce(i.indrelid, h.relation) as oid, h.pid, h.virtualtransaction from held h left join pg_catalog.pg_index i on i.indexrelid = h.relation
  union
  select i.inhparent, a.pid, a.virtualtransaction from above a join pg_catalog.pg_inherits i on i.inhrelid = a.oid
), named as (
  select w.table_name, a.pid, row_number() over (partition by w.table_name order by a.pid, a.virtualtransaction) as n
    from outbox.watched w join above a on a.oid = outbox.table_named(w.table_name)::oid
)
select n.table_name, format('%s is locked on the source by %s', n.table_name, string_agg(
         case when n.pid is null then 'a prepared transaction: pg_prepared_xacts names it'
              else format('process %s (role %s): select pg_terminate_backend(%s) ends it', n.pid, coalesce(s.usename, '?'), n.pid) end, ', ' order by n.n)) as said
  from named n left join pg_catalog.pg_stat_activity s on s.pid = n.pid
 where n.n <= 3
 group by n.table_name
 order by n.table_name
