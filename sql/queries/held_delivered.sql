-- Letters of a table that was out have arrived, and with them what of the same keys came before.
delete from outbox.held h
 using (select d.table_name, d.key, max(d.id) as id from outbox.held d where d.id = any (%(ids)s::int8[]) group by 1, 2) d
 where h.table_name = d.table_name and md5(h.key) = md5(d.key) and h.id <= d.id
