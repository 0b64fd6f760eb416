-- The enum types, domains and composite types of these names, and those that they are made of: what is needed first.
with recursive used as (
  select t.oid, t.typtype, t.typbasetype, t.typrelid, 1 as depth
    from unnest(%(types)s::text[]) u(name) join pg_type t on t.oid = to_regtype(u.name)
  union
  select e.oid, e.typtype, e.typbasetype, e.typrelid, u.depth + 1
    from used u
    cross join lateral (select u.typbasetype as oid where u.typtype = 'd'
                        union select a.atttypid from pg_attribute a where u.typtype = 'c' and a.attrelid = u.typrelid and a.attnum > 0 and not a.attisdropped) b
    join pg_type t on t.oid = b.oid
    join pg_type e on e.oid = case when t.typcategory = 'A' and t.typelem <> 0 then t.typelem else t.oid end
   where e.oid >= 16384 and u.depth < 20
)
select n.nspname, t.typname, t.typtype, x.extname,
       array(select e.enumlabel::text from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder),
       case when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) end,
       case when t.typtype = 'c' then (
         select string_agg(format('%%I %%s', a.attname, format_type(a.atttypid, a.atttypmod)), ', ' order by a.attnum)
           from pg_attribute a where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) end,
       array(select array[m.nspname::text, e.typname::text]
               from (select t.typbasetype as oid where t.typtype = 'd'
                     union select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) b
               join pg_type p on p.oid = b.oid
               join pg_type e on e.oid = case when p.typcategory = 'A' and p.typelem <> 0 then p.typelem else p.oid end
               join pg_namespace m on m.oid = e.typnamespace
              where e.oid >= 16384)
  from (select oid, max(depth) as depth from used group by oid) u
  join pg_type t on t.oid = u.oid
  join pg_namespace n on n.oid = t.typnamespace
  left join pg_depend p on p.classid = 'pg_type'::regclass and p.objid = t.oid and p.deptype = 'e'
  left join pg_extension x on x.oid = p.refobjid
 order by u.depth desc, n.nspname, t.typname
