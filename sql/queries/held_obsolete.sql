-- Keys of which all letters were recorded while their table was watched as something
-- else. To be asked of tables that a copy has brought since.
select distinct h.table_name, h.key
  from outbox.identities(%(tables)s) i
  join outbox.held h on h.table_name = i.table_name and h.id > 0 and h.id < i.since_id
 where not exists (select from outbox.held n where n.table_name = h.table_name and md5(n.key) = md5(h.key) and (n.id < 0 or n.id >= i.since_id))
 limit 1000
