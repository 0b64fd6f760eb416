-- What others may do by way of mirrored tables. The door writes with the rights of its owner; whatever a table calls when it is
-- written runs with them, whoever wrote that.

-- Who may create something in a schema besides the door's owner and superusers, by what is granted.
create or replace function outboxd.creators(schema oid, door oid) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(distinct case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
    from pg_namespace n
   cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
    left join pg_roles r on r.oid = a.grantee
   where n.oid = creators.schema and a.privilege_type = 'CREATE' and a.grantee <> door and not coalesce(r.rolsuper, false)
     and a.grantee not in (n.nspowner, 'pg_database_owner'::regrole)
$$;

-- What somebody other than its owner may do with schema outboxd, what is in it, and the exposed wrappers, as far as these are the
-- door's owner's: of what others have called so nobody here takes anything away. `call`: what a relay needs, in a line of its own.
create or replace function outboxd.grants() returns table (object text, grantee oid, rights text, call boolean, described boolean, fix text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with door as (
    select p.proowner as owner, obj_description(p.oid, 'pg_proc') as said from pg_proc p where p.oid = 'outboxd.door(text)'::regprocedure
  ), objects as (
    select 'schema' as kind, quote_ident(n.nspname) as object, n.nspowner as owner, n.nspacl as acl, 'USAGE' as meant, d.said
      from pg_namespace n cross join door d where n.nspname = 'outboxd'
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, format('outboxd.%I', c.relname), c.relowner, c.relacl, null, null
      from pg_class c where c.relnamespace = 'outboxd'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select 'routine', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner, coalesce(p.proacl, acldefault('f', p.proowner)),
           case when n.nspname <> 'outboxd' or p.oid = 'outboxd.door(text)'::regprocedure then 'EXECUTE' end, obj_description(p.oid, 'pg_proc')
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace cross join door d
     where n.nspname = 'outboxd' or (p.proname = 'outboxd' and p.proargtypes = '25' and p.prosrc = 'begin return outboxd.door($1); end' and p.proowner = d.owner)
  ), given as (
    select o.*, a.grantee, lower(a.privilege_type) as privilege, a.privilege_type = o.meant is true as call
      from objects o cross join lateral aclexplode(o.acl) a where a.grantee <> o.owner
  )
  select g.object, g.grantee, string_agg(distinct g.privilege, ', '), g.call, bool_and(g.said is not null),
         format('revoke %s on %s %s from %s cascade;', string_agg(distinct g.privilege, ', '), g.kind, g.object,
                case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end)
    from given g
   group by g.kind, g.object, g.owner, g.grantee, g.call
$$;

-- Each finding: `name`, the table as the source calls it (null: no table of ours), the rule, what is wrong, and a statement that
-- ends it. Rules that Supabase's advisors have as well are called as they are there.
create or replace function outboxd.findings() returns table (name text, rule text, what text, fix text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with door as (
    select p.proowner as owner, quote_ident(pg_get_userbyid(p.proowner)) as title from pg_proc p where p.oid = 'outboxd.door(text)'::regprocedure
  ), mirror as (
    select m.table_name as name, m.key_columns, c.oid, c.oid::regclass::text as title, c.relnamespace as schema, c.relowner, c.relrowsecurity, d.owner as door, d.title as door_title
      from outboxd.mirror m cross join door d join pg_class c on c.oid = outboxd.place_of(m)
  ), client as (
    select oid, rolname from pg_roles where rolname in ('anon', 'authenticated')
  ), writable as (
    select m.*, string_agg(distinct c.rolname, ', ') as clients
      from mirror m
     cross join client c
      join unnest(array['insert', 'update']) p(privilege) on has_any_column_privilege(c.oid, m.oid, p.privilege)
     where not m.relrowsecurity
        or exists (select from pg_policy l where l.polrelid = m.oid and l.polpermissive and l.polcmd in ('*', case p.privilege when 'insert' then 'a' else 'w' end)
                                             and (0 = any (l.polroles) or exists (select from unnest(l.polroles) r where pg_has_role(c.oid, nullif(r, 0), 'usage'))))
     group by m.name, m.key_columns, m.oid, m.title, m.schema, m.relowner, m.relrowsecurity, m.door, m.door_title
  ), called as (
    select m.*, t.tgname, p.oid as function, p.proowner, p.proconfig, p.prolang
      from mirror m join pg_trigger t on t.tgrelid = m.oid and not t.tgisinternal and t.tgenabled in ('O', 'A') join pg_proc p on p.oid = t.tgfoid
  ), shown as (
    select v.oid, v.oid::regclass::text as title, v.relkind, d.refobjid,
           coalesce((select bool_or(o.option_value::boolean) from pg_options_to_table(v.reloptions) o where o.option_name = 'security_invoker'), false) as invoker,
           (select string_agg(c.rolname, ', ' order by c.rolname) from client c where has_table_privilege(c.oid, v.oid, 'select')) as clients
      from pg_depend d join pg_rewrite r on r.oid = d.objid join pg_class v on v.oid = r.ev_class
     where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and v.relkind in ('v', 'm') and d.refobjid <> v.oid
     group by v.oid, d.refobjid
  )
  select m.name, 'foreign_owner',
         format('%s belongs to %s, whose triggers, rules and checks run with the rights of %s', m.title, quote_ident(pg_get_userbyid(m.relowner)), m.door_title),
         format('alter table %s owner to %s;', m.title, m.door_title)
    from mirror m join pg_roles r on r.oid = m.relowner where m.relowner <> m.door and not r.rolsuper
  union all
  select m.name, 'foreign_create',
         format('%s may create functions in schema %s, which a name without its schema may mean', array_to_string(c.roles, ', '), n.title),
         format('revoke create on schema %s from %s;', n.title, array_to_string(c.roles, ', '))
    from mirror m cross join lateral (select quote_ident(nspname) as title from pg_namespace where oid = m.schema) n
   cross join lateral (select outboxd.creators(m.schema, m.door) as roles) c where c.roles is not null
  union all
  select c.name, 'foreign_trigger',
         format('trigger %I calls %s of %s with the rights of %s', c.tgname, c.function::regprocedure, quote_ident(pg_get_userbyid(c.proowner)), c.door_title),
         format('alter table %s disable trigger %I;', c.title, c.tgname)
    from called c join pg_roles r on r.oid = c.proowner where c.proowner <> c.door and not r.rolsuper
  union all
  select m.name, 'foreign_type',
         format('column %I is of %s of %s, whose checks run with the rights of %s', a.attname, t.oid::regtype, quote_ident(pg_get_userbyid(t.typowner)), m.door_title),
         format('alter domain %s owner to %s;', t.oid::regtype, m.door_title)
    from mirror m join pg_attribute a on a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid and t.typtype = 'd' join pg_roles r on r.oid = t.typowner
   where t.typowner <> m.door and not r.rolsuper
  union all
  select w.name, 'clients_write',
         format('%s may write here: by %s they learn whether a value is there that they may not see, keep the source''s rows out, or hold its deletes up', w.clients, k.names),
         format('revoke insert, update, delete on %s from %s;', w.title, w.clients)
    from writable w
   cross join lateral (
     select string_agg(format('%s %I', u.kind, u.name), ', ' order by u.kind, u.name) as names
       from (select 'unique' as kind, i.indexrelid as oid, x.relname as name
               from pg_index i join pg_class x on x.oid = i.indexrelid
              where i.indrelid = w.oid and i.indisunique
                -- Of a row that has the key already the source's becomes the row; a uuid nobody guesses.
                and not (i.indisprimary and exists (select from pg_attribute a where a.attrelid = w.oid and a.attnum = any (i.indkey::int2[]) and a.atttypid = 'uuid'::regtype))
             union all
             select 'foreign key', f.oid, f.conname from pg_constraint f where f.contype = 'f' and f.conrelid = w.oid and f.conparentid = 0) u) k
   where k.names is not null
  union all
  select m.name, 'policy_exists_rls_disabled', format('%s has policies, and row level security is off: they do nothing', m.title),
         format('alter table %s enable row level security;', m.title)
    from mirror m where not m.relrowsecurity and exists (select from pg_policy p where p.polrelid = m.oid)
  union all
  select m.name, 'unindexed_foreign_keys', format('foreign key %I has no index: a delete of its parent reads all of %s', f.conname, m.title),
         format('create index on %s (%s);', m.title, (select string_agg(quote_ident(a.attname), ', ' order by u.n) from unnest(f.conkey) with ordinality u(attnum, n) join pg_attribute a on a.attrelid = m.oid and a.attnum = u.attnum))
    from mirror m join pg_constraint f on f.conrelid = m.oid and f.contype = 'f'
   where not exists (select from pg_index i where i.indrelid = m.oid and i.indisvalid and i.indpred is null
                                              and (i.indkey::int2[])[0:cardinality(f.conkey) - 1] @> f.conkey)
  union all
  select m.name, case v.relkind when 'm' then 'materialized_view_in_api' else 'security_definer_view' end,
         format('view %s shows rows of %s to %s past its row level security', v.title, m.title, v.clients),
         case v.relkind when 'm' then format('revoke select on %s from %s;', v.title, v.clients) else format('alter view %s set (security_invoker = on);', v.title) end
    from mirror m join shown v on v.refobjid = m.oid and v.clients is not null and not v.invoker
  union all
  select c.name, 'function_search_path_mutable',
         format('trigger %I calls %s, which has no search_path of its own: what it names without a schema is whatever the caller''s finds first', c.tgname, c.function::regprocedure),
         format('alter function %s set search_path = ''''; -- and write the schema before each name in it', c.function::regprocedure)
    from called c join pg_language l on l.oid = c.prolang
   where l.lanname not in ('c', 'internal') and not exists (select from unnest(c.proconfig) s where s like 'search\_path=%')
  union all
  select null, 'foreign_grant', format('%s has %s on %s, which nobody meant', case g.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end, g.rights, g.object), g.fix
    from outboxd.grants() g left join pg_roles r on r.oid = g.grantee
   where not coalesce(r.rolsuper, false) and not (g.call and coalesce(r.rolname in ('service_role', session_user), false))
  union all
  select null, 'auth_users_exposed', format('view %s shows auth.users to %s', v.title, v.clients), format('revoke select on %s from %s;', v.title, v.clients)
    from shown v where v.refobjid = to_regclass('auth.users') and v.clients is not null
$$;

create or replace function outboxd.advice() returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select json_build_object('findings', (select coalesce(json_agg(f order by f.name, f.rule, f.what), '[]') from outboxd.findings() f))
$$;

revoke all on all functions in schema outboxd from public;
