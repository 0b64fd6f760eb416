-- Tables, there or watched, whose name is one of these whatever its letters' case. A schema that is null: where the
-- search_path leads, and every schema of a watched one.
select distinct f.name
  from unnest(%(schemas)s::text[], %(titles)s::text[]) r(schema, title)
 cross join lateral (
   select format('%%I.%%I', n.nspname, c.relname) as name
     from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where lower(c.relname) = r.title and c.relkind in ('r', 'p', 'v', 'm', 'f')
      and case when r.schema is null then pg_table_is_visible(c.oid) else lower(n.nspname) = r.schema end
   union all
   select w.table_name from outbox.watched w
    where lower((parse_ident(w.table_name))[2]) = r.title and coalesce(lower((parse_ident(w.table_name))[1]) = r.schema, true)) f
 order by 1
