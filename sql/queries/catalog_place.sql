-- The project around the tables: roles, schemas, extensions, Realtime's publication, the map, the copies.
select json_build_object(
  'roles', (select coalesce(json_agg(rolname), '[]') from pg_roles where rolname = any (%(roles)s)),
  'schemas', (select json_agg(nspname) from pg_namespace),
  'usable', (select coalesce(json_agg(r.rolname || ' ' || n.nspname), '[]') from pg_roles r cross join pg_namespace n
              where r.rolname = any (%(roles)s) and has_schema_privilege(r.oid, n.oid, 'usage')),
  'extensions', (select coalesce(json_object_agg(x.extname, n.nspname), '{}') from pg_extension x join pg_namespace n on n.oid = x.extnamespace),
  'relations', (select coalesce(json_agg(json_build_array(n.nspname, c.relname, coalesce(t.relname, c.relname))), '[]')
                  from pg_class c join pg_namespace n on n.oid = c.relnamespace
                  left join pg_index i on i.indexrelid = c.oid left join pg_class t on t.oid = i.indrelid
                 where n.nspname = any (%(schemas)s)),
  'realtime', (select json_build_object('all', p.puballtables, 'tables', (
                 select coalesce(json_agg(json_build_array(t.schemaname, t.tablename)), '[]') from pg_publication_tables t where t.pubname = p.pubname))
                 from pg_publication p where p.pubname = 'supabase_realtime'),
  'uid', to_regprocedure('auth.uid()') is not null,
  'mirrors', (select coalesce(json_agg(json_build_array(m.table_name, m.target_schema, m.target_table, m.key_columns)), '[]') from outboxd.mirror m),
  'copy', to_regclass('outboxd.copy') is not null)
