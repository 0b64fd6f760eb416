-- Of the tables that are out those that no copy can bring back (uncopied.sql): is one of their letters wanted again, or
-- to be dropped? Not those of keys that are held (hashed): nothing becomes of them while it is out, and they would be asked for
-- without end.
select t.table_name, coalesce(l.retry, false), coalesce(l.discard, false)
  from unnest(%(tables)s::text[]) t(table_name) left join outbox.watched w on w.table_name = t.table_name
 cross join lateral (
   select bool_or(h.wanted = 'retry') as retry, bool_or(h.wanted = 'discard') as discard
     from outbox.held h
    where h.wanted is not null and h.table_name = t.table_name
      and not exists (select from unnest(%(held_tables)s::text[], %(held_keys)s::text[]) k(table_name, key)
                       where k.table_name = h.table_name and k.key = md5(h.key))) l
 where not (coalesce(w.capture, false) and outbox.table_named(w.table_name) is not null)
 order by 1
