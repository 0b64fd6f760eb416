-- No migration: takes outboxd's triggers off, from one table with its partitions, or (without the setting) from all.
-- Run as the tables' owner, before uninstall.sql. It takes an ACCESS EXCLUSIVE lock: set a short lock_timeout.

do $$
declare
  only_root oid := nullif(current_setting('outboxd.only_table', true), '')::oid;
  root      regclass;
  t         record;
begin
  -- From the root down, as whoever writes through it: otherwise each might hold what the other waits for.
  for root in
    select distinct coalesce(pg_partition_root(g.tgrelid), g.tgrelid)::oid
      from pg_trigger g join pg_proc p on p.oid = g.tgfoid
     where p.pronamespace = to_regnamespace('outbox') and not g.tgisinternal
     order by 1
  loop
    continue when root <> only_root;
    execute format('lock table %s in access exclusive mode', root);
    for t in
      select g.tgname, g.tgrelid::regclass as rel from pg_trigger g join pg_proc p on p.oid = g.tgfoid
       where p.pronamespace = to_regnamespace('outbox') and not g.tgisinternal and g.tgparentid = 0
         and coalesce(pg_partition_root(g.tgrelid), g.tgrelid) = root
    loop
      execute format('drop trigger %I on %s', t.tgname, t.rel);
    end loop;
    -- Stopped half-way, `outboxd watched` says which tables are left.
    if to_regclass('outbox.watched') is not null then
      delete from outbox.watched w where w.table_name = (
        select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = root);
    end if;
  end loop;
end
$$;
