-- No migration: takes schema outboxd and the exposed function away, wherever that is. Mirrored tables, their rows,
-- policies and grants stay. Nothing happens when all of it is gone already.
--
-- Without CASCADE: whatever is not outboxd's, and lies in the schema or depends on it, keeps it standing and is named.

do $$
declare
  routines text;
begin
  select string_agg(format('%I.outboxd(text)', n.nspname), ', ') into routines
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
   where p.proname = 'outboxd' and p.proargtypes[0] = 'text'::regtype and p.pronargs = 1 and p.prosrc like '%outboxd.door(%';
  if routines is not null then
    execute 'drop function ' || routines;
  end if;
  if to_regnamespace('outboxd') is not null then
    select string_agg(format('outboxd.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), ', ') into routines
      from pg_proc p where p.pronamespace = to_regnamespace('outboxd');
    if routines is not null then
      execute 'drop routine ' || routines;
    end if;
    drop table if exists outboxd.cursor, outboxd.held, outboxd.mirror, outboxd.copy, outboxd.heartbeat, outboxd.verification, outboxd.filled, outboxd.migration;
    drop schema outboxd;
  end if;
end
$$;

notify pgrst, 'reload schema';
