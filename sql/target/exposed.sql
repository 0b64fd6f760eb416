-- The exposed wrapper and who may call it. `public` stands for the schema PostgREST exposes (setting
-- exposed_schema), service_role for the role of the secret key.
--
-- statement_timeout works on the function PostgREST calls, not on one that it calls in turn. Isolation is
-- pinned because a serialization failure would make PostgREST 14 and older run the request again for ever.

create or replace function public.outboxd(text) returns json
language plpgsql volatile security invoker
set search_path = pg_catalog, pg_temp
set statement_timeout = '12s'
set lock_timeout = '6s'
set default_transaction_isolation = 'read committed'
as 'begin return outboxd.door($1); end';

comment on function public.outboxd(text) is 'The one door of outboxd; service_role alone may call it';

revoke all on function public.outboxd(text) from public;

do $$
declare
  r text;
begin
  -- The roles a hosted project has; anywhere else, grant these to the role outboxd connects as.
  -- Revoked by name: a project's default privileges may have granted them whatever was just created.
  foreach r in array array['anon', 'authenticated', 'service_role'] loop
    if exists (select from pg_roles where rolname = r) then
      execute format('revoke all on function public.outboxd(text) from %I', r);
      execute format('revoke all on all functions in schema outboxd from %I', r);
      execute format('revoke all on all tables in schema outboxd from %I', r);
    end if;
  end loop;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant usage on schema outboxd to service_role;
    grant execute on function outboxd.door(text) to service_role;
    grant execute on function public.outboxd(text) to service_role;
  end if;
end
$$;

notify pgrst, 'reload schema';
