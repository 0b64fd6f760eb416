-- No migration, for it is run whenever setup is: takes back what somebody was given of schema outbox and was not meant to have
-- (0013). What belongs to another watcher its own `watch` closes.

do $$
declare
  given record;
begin
  if to_regprocedure('outbox.foreign_grants()') is null then
    return;
  end if;
  -- Everybody's first: what is then left of a role's is its own.
  for given in select f.fix, f.object, f.grantee from outbox.foreign_grants() f order by f.grantee = 'public' desc loop
    begin
      execute given.fix;
    exception when insufficient_privilege then
      raise warning '% can use %, which is another owner''s: run as that one:  %', given.grantee, given.object, given.fix;
    end;
  end loop;
end
$$;
