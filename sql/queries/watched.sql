select table_name, capture, coalesce(key_columns, outbox.primary_key(outbox.table_named(table_name))), include, exclude, on_error,
       target, rename, constant, mask, filter
  from outbox.watched
 order by table_name
