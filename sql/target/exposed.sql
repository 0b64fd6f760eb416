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

-- Whatever default privileges gave of what was made, to whomever, is taken back. What a relay needs stays with a role that somebody gave
-- it to by hand: after the first setup, which is told by the comments below.
do $$
declare
  given record;
begin
  for given in
    select g.fix, g.object from outboxd.grants() g left join pg_roles r on r.oid = g.grantee
     where not (g.call and g.described and coalesce(r.rolname not in ('anon', 'authenticated'), false))
  loop
    begin
      execute given.fix;
    exception when insufficient_privilege then
      raise warning '% is another owner''s: run as that one:  %', given.object, given.fix;
    end;
  end loop;
  -- The role a hosted project has; anywhere else, grant these to the role outboxd connects as.
  if exists (select from pg_roles where rolname = 'service_role') then
    grant usage on schema outboxd to service_role;
    grant execute on function outboxd.door(text) to service_role;
    grant execute on function public.outboxd(text) to service_role;
  end if;
end
$$;

comment on function public.outboxd(text) is 'The one door of outboxd; service_role alone may call it';
comment on function outboxd.door(text) is 'What the exposed function calls; closed to all but who was meant';

notify pgrst, 'reload schema';
