-- Captured tables that have another name by now: as what each is watched, what it is called, and whether no table has the old
-- name. Their triggers went along.
select w.table_name, format('%I.%I', c.relnamespace::regnamespace::name, c.relname) as called,
       not exists (select from pg_class o where o.oid = outbox.table_named(w.table_name) and o.relkind in ('r', 'p')) as gone, w.key_columns
  from outbox.watched w
  join pg_proc p on p.oid = to_regprocedure(format('outbox.capture_%s()', w.id))
  join pg_trigger g on g.tgfoid = p.oid and g.tgname = 'outbox_row_' || w.id and g.tgparentid = 0
  join pg_class c on c.oid = g.tgrelid
 where c.oid is distinct from outbox.table_named(w.table_name)
 order by 1
