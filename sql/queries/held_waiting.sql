-- Of the tables that are out those that no copy can bring back (uncopied.sql): is one of their letters wanted again, or
-- to be dropped?
select t.table_name,
       exists (select from outbox.held h where h.wanted = 'retry' and h.table_name = t.table_name),
       exists (select from outbox.held h where h.wanted = 'discard' and h.table_name = t.table_name)
  from unnest(%(tables)s::text[]) t(table_name) left join outbox.watched w on w.table_name = t.table_name
 where not (coalesce(w.capture, false) and outbox.table_named(w.table_name) is not null)
 order by 1
