-- Tables that carry a trigger of outboxd, partitions by their root.
select distinct coalesce(pg_partition_root(g.tgrelid), g.tgrelid)::oid::bigint, coalesce(pg_partition_root(g.tgrelid), g.tgrelid)::regclass::text
  from pg_trigger g join pg_proc p on p.oid = g.tgfoid
 where p.pronamespace = to_regnamespace('outbox') and not g.tgisinternal
 order by 1
