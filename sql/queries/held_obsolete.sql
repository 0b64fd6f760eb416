-- Keys of which all letters were recorded while their table was watched as something else, or are of no change. To be asked
-- of tables that a copy has brought since.
with stale as materialized (
  select distinct h.table_name, h.key, md5(h.key) as hash, i.since_id
    from outbox.identities(%(tables)s::text[]) i
    join outbox.held h on h.table_name = i.table_name and (h.id between 1 and i.since_id - 1 or h.id < 0 and h.op = 'lost')
)
select s.table_name, s.key
  from stale s
 where (select true from outbox.held n
         where (md5(n.key), n.table_name, n.id) >= (s.hash, s.table_name, '-9223372036854775808'::int8)
           and (md5(n.key), n.table_name, n.id) <= (s.hash, s.table_name, 9223372036854775807)
           and n.id not between 1 and s.since_id - 1 and n.op <> 'lost'
         order by md5(n.key) desc, n.table_name desc, n.id desc limit 1) is null
 limit 1000
