select p.polrelid, p.polname,
       case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
       array(select case r when 0 then 'public' else pg_get_userbyid(r)::text end from unnest(p.polroles) r order by 1),
       pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)
  from pg_policy p
 where p.polrelid = any (%(oids)s::oid[])
 order by p.polrelid, p.polname
