-- Captured tables whose owner can have a superuser run code: capture reads the table as whoever watches it, and what the owner puts
-- into an index, a statistic or a domain Postgres may run for that.
select w.table_name, o.rolname as watcher, t.rolname as owner
  from outbox.watched w
  join pg_proc p on p.oid = to_regprocedure(format('outbox.capture_%s()', w.id))
  join pg_roles o on o.oid = p.proowner
  join pg_class c on c.oid = outbox.table_named(w.table_name)
  join pg_roles t on t.oid = c.relowner
 where w.capture and o.rolsuper and not t.rolsuper
 order by 1
