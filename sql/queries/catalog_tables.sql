-- The tables asked for that are there. Run with an empty search_path, as all of catalog_*: then every name is whole.
select c.oid, n.nspname, c.relname, c.relkind = 'p', c.relrowsecurity, obj_description(c.oid, 'pg_class'), greatest(c.reltuples, 0)::bigint,
       pg_has_role(c.relowner, 'usage'),
       array(select r.rolname::text || ' ' || p
               from pg_roles r cross join unnest(array['select', 'insert', 'update', 'delete']) p
              where r.rolname = any (%(roles)s) and has_table_privilege(r.oid, c.oid, p)),
       array(select t.tgname::text from pg_trigger t
              where t.tgrelid = c.oid and not t.tgisinternal and t.tgenabled in ('O', 'A') and t.tgtype & 3 = 3)
  from (select parse_ident(name) as parts from unnest(%(tables)s::text[]) t(name)) r  -- not by regclass, which asks for a right
  join pg_namespace n on n.nspname = r.parts[1]
  join pg_class c on c.relnamespace = n.oid and c.relname = r.parts[2] and c.relkind in ('r', 'p')
 order by n.nspname, c.relname
