-- Keys of which all letters were recorded while their table was watched as something else, or are of no change. To be asked
-- of tables that a copy has brought since.
select distinct h.table_name, h.key
  from outbox.identities(%(tables)s::text[]) i
  join outbox.held h on h.table_name = i.table_name and (h.id between 1 and i.since_id - 1 or h.id < 0 and h.op = 'lost')
 where not exists (select from outbox.held n where n.table_name = h.table_name and md5(n.key) = md5(h.key)
                      and n.id not between 1 and i.since_id - 1 and n.op <> 'lost')
 limit 1000
