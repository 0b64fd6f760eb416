-- Of these tables those whose rows nothing but their changes can bring: emitted by the application, no longer watched, or gone.
-- Do they halt the relay? (A heartbeat is no row: the next one makes it good.)
select t.table_name, coalesce(w.on_error = 'halt', false)
  from unnest(%(tables)s::text[]) t(table_name) left join outbox.watched w on w.table_name = t.table_name
 where not (coalesce(w.capture, false) and outbox.table_named(w.table_name) is not null) and t.table_name <> 'outboxd.heartbeat'
