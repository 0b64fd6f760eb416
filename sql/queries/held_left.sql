-- Letters that nobody sends, of tables that no copy brings any more: recorded while their table was watched as something else,
-- or lost. They say so, and nobody waits for them; what came later of their keys is sent without them.
with letters as (
  select h.id, h.table_name, h.key, h.op, h.sqlstate, h.wanted, h.id between 1 and i.since_id - 1 or h.op = 'lost' as stays
    from outbox.identities(%(tables)s::text[]) i join outbox.held h on h.table_name = i.table_name
   where exists (select from outbox.held n where n.table_name = h.table_name and md5(n.key) = md5(h.key)
                    and (n.id between 1 and i.since_id - 1 or n.op = 'lost'))
), left_over as (
  update outbox.held h set wanted = null, sqlstate = %(state)s, reason = case when l.op = 'lost' and l.sqlstate = %(state)s then h.reason else %(reason)s end
    from letters l
   where h.id = l.id and l.stays and l.wanted is distinct from 'discard' and (l.wanted = 'retry' or l.sqlstate is distinct from %(state)s)
)
update outbox.held h set wanted = 'retry'
  from letters l
 where h.id = l.id and not l.stays and h.wanted is null and h.sqlstate is null
   and not exists (select from letters n where n.table_name = l.table_name and n.key = l.key and not n.stays and n.sqlstate is not null)
