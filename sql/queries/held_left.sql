-- Letters that nobody sends, of tables that no copy brings any more: recorded while their table was watched as something else,
-- or lost. They say so, `page` at most at once, and nobody waits for them; what came later of their keys is sent without them.
with stale as materialized (
  select h.id, h.table_name, md5(h.key) as hash, h.op, h.sqlstate, h.wanted, i.since_id
    from outbox.identities(%(tables)s::text[]) i
    join outbox.held h on h.table_name = i.table_name and (h.id between 1 and i.since_id - 1 or h.op = 'lost')
), left_over as (
  update outbox.held h set wanted = null, sqlstate = %(state)s, reason = case when l.op = 'lost' and l.sqlstate = %(state)s then h.reason else %(reason)s end
    from (select * from stale l
           where l.wanted is distinct from 'discard' and (l.wanted = 'retry' or l.sqlstate is distinct from %(state)s)
           limit %(page)s) l
   where h.id = l.id
  returning 1
), later as (
  select h.table_name, md5(h.key) as hash, max(h.id) as newest
    from (select distinct table_name, hash, since_id from stale) k
    join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.hash
   where h.id not between 1 and k.since_id - 1 and h.op <> 'lost'
   group by 1, 2
  having bool_and(h.sqlstate is null and h.wanted is null)
), sent as (
  update outbox.held h set wanted = 'retry' from later l where h.id = l.newest
)
select count(*) from left_over
