-- Columns with their types. `element` is what an array holds; `base` is what lies below domains.
with recursive below as (
  select t.oid as of_type, t.oid, t.typtype, t.typbasetype, t.typtypmod from pg_type t
   where t.oid in (select a.atttypid from pg_attribute a where a.attrelid = any (%(oids)s::oid[]))
  union all
  select b.of_type, t.oid, t.typtype, t.typbasetype, t.typtypmod from below b join pg_type t on t.oid = b.typbasetype where b.typtype = 'd'
)
select a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), en.nspname, e.typname, e.typtype, x.extname,
       (select format_type(b.oid, -1) from below b where b.of_type = a.atttypid and b.typtype <> 'd'),
       a.attnotnull, pg_get_expr(d.adbin, d.adrelid), a.attidentity <> '' or a.attgenerated <> '', a.attgenerated <> '',
       case when a.attcollation <> t.typcollation and cn.nspname = 'pg_catalog' and l.collname in ('C', 'POSIX') then l.collname end,
       col_description(a.attrelid, a.attnum)
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid
  join pg_type e on e.oid = case when t.typcategory = 'A' and t.typelem <> 0 then t.typelem else t.oid end
  join pg_namespace en on en.oid = e.typnamespace
  left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  left join pg_collation l on l.oid = a.attcollation
  left join pg_namespace cn on cn.oid = l.collnamespace
  left join pg_depend p on p.classid = 'pg_type'::regclass and p.objid = e.oid and p.deptype = 'e'
  left join pg_extension x on x.oid = p.refobjid
 where a.attrelid = any (%(oids)s::oid[]) and a.attnum > 0 and not a.attisdropped
 order by a.attrelid, a.attnum
