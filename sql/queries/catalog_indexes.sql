-- Indexes and the constraints that own them. `portable`: it needs nothing but what every Postgres has, which no owner of a table
-- can make: an expression runs on the target with its owner's rights.
select i.indrelid, c.relname, m.amname, i.indisunique, i.indisprimary, k.oid is not null, not i.indimmediate,
       array(select case when u.attnum <> 0 then (select a.attname::text from pg_attribute a where a.attrelid = i.indrelid and a.attnum = u.attnum) end
               from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality u(attnum, n) order by u.n),
       array(select pg_get_indexdef(i.indexrelid, n, false) from generate_series(1, i.indnkeyatts) n order by n),
       array(select concat(case when not o.opcdefault then ' ' || quote_ident(o.opcname) end,
                           case when (i.indoption::int2[])[n - 1] & 1 = 1 then ' desc' end,
                           case (i.indoption::int2[])[n - 1] & 3 when 1 then ' nulls last' when 2 then ' nulls first' end)
               from generate_series(1, i.indnkeyatts) n join pg_opclass o on o.oid = (i.indclass::oid[])[n - 1] order by n),
       pg_get_expr(i.indpred, i.indrelid), coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
       not exists (select from pg_depend d
                    where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
                      and not (d.refclassid in ('pg_class'::regclass, 'pg_constraint'::regclass) and (d.refobjid = i.indrelid or d.deptype in ('i', 'a', 'P', 'S')))
                      and not (d.refclassid = 'pg_collation'::regclass and i.indexprs is null and i.indpred is null)),
       exists (select from pg_constraint f where f.contype = 'f' and f.conindid = i.indexrelid)
  from pg_index i
  join pg_class c on c.oid = i.indexrelid
  join pg_am m on m.oid = c.relam
  left join pg_constraint k on k.conindid = i.indexrelid and k.conrelid = i.indrelid and k.contype in ('p', 'u', 'x')
 where i.indrelid = any (%(oids)s::oid[]) and i.indisvalid
 order by i.indrelid, c.relname
