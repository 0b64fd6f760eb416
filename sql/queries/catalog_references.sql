-- Foreign keys from and to the tables.
select k.conname, cn.nspname, c.relname, pn.nspname, p.relname,
       array(select a.attname::text from unnest(k.conkey) with ordinality u(attnum, n)
               join pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.attnum order by u.n),
       array(select a.attname::text from unnest(k.confkey) with ordinality u(attnum, n)
               join pg_attribute a on a.attrelid = k.confrelid and a.attnum = u.attnum order by u.n),
       k.confdeltype, k.condeferrable, k.convalidated, k.confmatchtype = 'f',
       coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true)
  from pg_constraint k
  join pg_class c on c.oid = k.conrelid
  join pg_namespace cn on cn.oid = c.relnamespace
  join pg_class p on p.oid = k.confrelid
  join pg_namespace pn on pn.oid = p.relnamespace
 where k.contype = 'f' and k.conparentid = 0 and (k.conrelid = any (%(oids)s::oid[]) or k.confrelid = any (%(oids)s::oid[]))
 order by cn.nspname, c.relname, k.conname
