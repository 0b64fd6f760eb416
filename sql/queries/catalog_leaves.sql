-- Foreign keys that stand on a partition alone, not on the table that it belongs to.
select n.nspname, c.relname, k.conrelid::regclass::text, k.conname
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
 cross join lateral pg_partition_tree(c.oid) p
  join pg_constraint k on k.conrelid = p.relid and k.contype = 'f' and k.conparentid = 0
 where c.oid = any (%(oids)s::oid[]) and c.relkind = 'p' and p.relid <> c.oid
 order by 1, 2, 3, 4
