-- What is watched, and as what it goes to the target.
select to_jsonb(w) || jsonb_build_object('key', coalesce(w.key_columns, outbox.primary_key(outbox.table_named(w.table_name))), 'there', outbox.table_named(w.table_name) is not null,
         'sent', (select json_agg(distinct c) from outbox.shape s cross join unnest(s.columns) c where s.table_name = w.table_name))
  from outbox.watched w
 order by w.table_name
