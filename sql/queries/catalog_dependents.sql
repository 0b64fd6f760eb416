-- What would fall or stand in the way when a column changes: views, policies, generated columns and such.
select d.refobjid, a.attname, pg_describe_object(case when d.classid = 'pg_rewrite'::regclass then 'pg_class'::regclass else d.classid end,
                                                 coalesce(r.ev_class, d.objid), 0)
  from pg_depend d
  join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
  left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
 where d.refclassid = 'pg_class'::regclass and d.refobjid = any (%(oids)s::oid[]) and d.refobjsubid > 0
   and d.classid in ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass, 'pg_constraint'::regclass, 'pg_class'::regclass)
   and d.objid <> d.refobjid
 group by 1, 2, 3
 order by 1, 2, 3
