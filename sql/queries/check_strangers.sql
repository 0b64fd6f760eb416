-- What lies in schema outbox and was not made by outboxd: relations of other owners, and functions of theirs that no watched table's capture is made of.
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
 order by 2
