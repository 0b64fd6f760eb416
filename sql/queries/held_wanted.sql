-- What the keys of which somebody wants something are to become: of each the letters that decide it, and no others. These
-- are, of those behind its last delete or its last whole row, the newest of each set of columns. Never what was recorded while
-- the table was watched as something else, or is lost, nor what is of `others` (hashed): keys of other columns than the table's. Whole
-- keys, up to `limit` of them, and as many as `bytes` reach. Letters to be dropped are left out: a key that has no others is
-- answered with none, `drops` says that it has some. What the target's cursor has not passed is still to be read, and not yet
-- a letter of its key.
with identities as materialized (
  select i.* from outbox.identities(array(select distinct w.table_name from outbox.held w where w.wanted is not null)) i
), whole as materialized (
  select s.id from identities i join outbox.shape s on s.table_name = i.table_name and s.columns @> i.columns
), marked as (
  select m.table_name, md5(m.key) as hash, min(m.key) as key, min(m.id) as first, min(m.since_id) as since_id
    from (select w.table_name, w.key, w.id, i.since_id from outbox.held w join identities i on i.table_name = w.table_name
           where w.wanted is not null and w.table_name <> all (%(out)s::text[])
             and (w.wanted = 'discard'
                  or exists (select from outbox.held n where n.table_name = w.table_name and md5(n.key) = md5(w.key)
                                and n.id not between 1 and i.since_id - 1 and n.op <> 'lost'))
             and (w.wanted = 'discard'
                  or not exists (select from unnest(%(other_tables)s::text[], %(other_keys)s::text[]) o(table_name, key) where o.table_name = w.table_name and o.key = md5(w.key)))
           order by w.id limit 10000) m
   group by 1, 2 order by 4 limit %(limit)s
), passed as (
  select k.first, h.id, h.op, h.shape, h.wanted
    from marked k join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.hash
   where (h.wanted = 'discard' or h.id not between 1 and k.since_id - 1 and h.op <> 'lost')
     and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
), dropped as (
  select p.first, bool_or(p.wanted = 'discard') as drops,
         max(p.id) filter (where (p.op = 'delete' or p.shape in (select id from whole)) and p.wanted is distinct from 'discard') as gone
    from passed p group by 1
), deciding as (
  select distinct on (p.first, p.op, p.shape) p.first, p.id
    from passed p join dropped d on d.first = p.first
   where p.wanted is distinct from 'discard' and p.id >= coalesce(d.gone, p.id)
   order by p.first, p.op, p.shape, p.id desc
), summed as (
  select k.*, d.drops, h.id, h.size, sum(case when h.size <= %(row_bytes)s then h.size end) over (order by k.first)
         - sum(case when h.size <= %(row_bytes)s then h.size end) over (partition by k.first) as before
    from marked k
    join dropped d on d.first = k.first
    left join lateral (select l.id, coalesce(octet_length(l.row), 0) as size from deciding c join outbox.held l on l.id = c.id where c.first = k.first) h on true
)
select h.xid, h.id, s.table_name, h.op, h.shape, s.key, case when s.size <= %(row_bytes)s then h.row end, coalesce(s.size, 0), false, h.created_at,
       coalesce(s.drops, false)
  from summed s left join outbox.held h on h.id = s.id
 where coalesce(s.before, 0) < %(bytes)s
 order by h.id
