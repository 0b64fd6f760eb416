-- What lies in schema outbox and was not made by outboxd: relations of other owners, functions of theirs that no watched table's capture is made
-- of, and triggers of whomever on tables that have one at most (0004).
select case p.prokind when 'a' then 'aggregate' else 'routine' end as kind, format('outbox.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) as object,
       p.proowner::regrole::text as owner
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where n.nspname = 'outbox' and p.proowner <> n.nspowner
   and not exists (select from outbox.watched w where p.oid in (select outbox.own_functions(w)))
union all
select case c.relkind when 'v' then 'view' when 'm' then 'materialized view' when 'S' then 'sequence' when 'f' then 'foreign table' else 'table' end,
       format('outbox.%I', c.relname), c.relowner::regrole::text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'outbox' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relowner <> n.nspowner
union all
select 'trigger', format('%I on outbox.%I', g.tgname, c.relname), p.proowner::regrole::text
  from pg_trigger g join pg_class c on c.oid = g.tgrelid join pg_proc p on p.oid = g.tgfoid join pg_namespace n on n.oid = c.relnamespace
 where n.nspname = 'outbox' and not g.tgisinternal
   and not (c.oid = to_regclass('outbox.watched') and p.oid = to_regprocedure('outbox.recount_shapes()') and p.proowner = n.nspowner)
 order by 2
