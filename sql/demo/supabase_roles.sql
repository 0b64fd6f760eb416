-- Supabase's roles, rights and auth functions, as a hosted project has them since 30 October 2026.
-- Run by a superuser in each database that plays a project; may run again. Roles belong to the whole cluster.
-- Left out: the safeupdate extension, which hosted projects preload and the embedded Postgres does not have.

do $$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('anon', 'nologin noinherit'),
      ('authenticated', 'nologin noinherit'),
      ('service_role', 'nologin noinherit bypassrls'),
      ('authenticator', 'login noinherit'),
      -- What hosted projects call postgres: it owns the database and is no superuser.
      ('supabase_owner', 'login createdb createrole bypassrls')
    ) as role (name, attributes)
  loop
    -- Roles are shared: another database of this cluster may be preparing them in this very moment.
    begin
      execute format('create role %I %s', wanted.name, wanted.attributes);
    exception when duplicate_object or unique_violation then null;
    end;
  end loop;
end
$$;

-- Rights on roles are shared as well, and two sessions granting the same one collide.
select pg_advisory_lock(hashtext('outboxd demo roles'));
grant anon, authenticated, service_role to authenticator;
grant anon, authenticated, service_role, authenticator to supabase_owner with admin option;
grant pg_monitor, pg_read_all_data, pg_signal_backend to supabase_owner;
alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
select pg_advisory_unlock(hashtext('outboxd demo roles'));

do $$
begin
  execute format('alter database %I owner to supabase_owner', current_database());
end
$$;

-- A new table is seen by nobody until somebody grants it: projects no longer have default privileges.
grant usage on schema public to anon, authenticated, service_role;

create schema if not exists auth;
grant usage on schema auth to anon, authenticated, service_role, supabase_owner;

create or replace function auth.jwt() returns jsonb
language sql stable
set search_path = ''
as $$
  select nullif(current_setting('request.jwt.claims', true), '')::jsonb
$$;

create or replace function auth.uid() returns uuid
language sql stable
set search_path = ''
as $$
  select (auth.jwt() ->> 'sub')::uuid
$$;

create or replace function auth.role() returns text
language sql stable
set search_path = ''
as $$
  select auth.jwt() ->> 'role'
$$;

-- Hosted projects tell PostgREST of every change of the schema.
create schema if not exists extensions;
grant usage on schema extensions to anon, authenticated, service_role, supabase_owner;

create or replace function extensions.pgrst_changed() returns event_trigger
language plpgsql
set search_path = ''
as $$
begin
  notify pgrst, 'reload schema';
end
$$;

drop event trigger if exists pgrst_ddl_watch;
create event trigger pgrst_ddl_watch on ddl_command_end
  execute function extensions.pgrst_changed();
drop event trigger if exists pgrst_drop_watch;
create event trigger pgrst_drop_watch on sql_drop
  execute function extensions.pgrst_changed();
