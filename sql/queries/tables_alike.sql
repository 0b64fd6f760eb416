-- Tables, there or watched, whose name is one of these whatever its letters' case. A schema that is null: where the
-- search_path leads, and every schema of a watched one. Not this session's, which is pinned, but what role and database are set to.
with path as (
  select p.schema, p.n
    from (select case when current_setting('search_path') <> 'pg_catalog, pg_temp' then current_setting('search_path') else coalesce((
            select substr(c.setting, 13) from pg_db_role_setting s cross join lateral unnest(s.setconfig) c(setting)
             where c.setting like 'search_path=%%'
               and s.setdatabase in (0, (select d.oid from pg_database d where d.datname = current_database()))
               and s.setrole in (0, (select r.oid from pg_roles r where r.rolname = session_user))
             order by s.setrole <> 0 desc, s.setdatabase <> 0 desc limit 1), '"$user", public') end as value) v
   cross join lateral unnest(string_to_array(v.value, ',')) with ordinality u(part, n)
   cross join lateral (select replace(trim(both '"' from trim(u.part)), '$user', session_user) as schema, u.n) p
)
select distinct f.name
  from unnest(%(schemas)s::text[], %(titles)s::text[]) r(schema, title)
 cross join lateral (
   select format('%%I.%%I', n.nspname, c.relname) as name
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where lower(c.relname) = r.title and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
      and case when r.schema is not null then lower(n.nspname) = r.schema
               else n.nspname = (select p.schema from path p join pg_namespace o on o.nspname = p.schema
                                   join pg_class k on k.relnamespace = o.oid and k.relname = c.relname order by p.n limit 1) end
   union all
   select w.table_name from outbox.watched w
    where lower((parse_ident(w.table_name))[2]) = r.title and coalesce(lower((parse_ident(w.table_name))[1]) = r.schema, true)) f
 order by 1
