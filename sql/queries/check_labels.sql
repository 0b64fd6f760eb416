-- The values of the enum types that watched tables' columns have (or arrays and domains of them), by the columns' names on
-- the target.
select w.table_name, coalesce(w.rename ->> a.attname, a.attname) as column, array_agg(e.enumlabel::text order by e.enumsortorder) as labels
  from outbox.watched w
  join pg_attribute a on a.attrelid = outbox.table_named(w.table_name) and a.attnum > 0 and not a.attisdropped
  join pg_type t on t.oid = outbox.base_type(a.atttypid)
  join pg_enum e on e.enumtypid = outbox.base_type(case when t.typcategory = 'A' and t.typelem <> 0 then t.typelem else t.oid end)
 where w.capture and w.mask ->> a.attname is null
   and a.attname = any (outbox.row_columns(outbox.table_named(w.table_name), w.include, w.exclude))
 group by w.table_name, 2
