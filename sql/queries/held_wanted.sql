-- What the keys of which somebody wants something are to become: of each the letters that decide it, and no others. These
-- are, of those behind its last delete or its last whole row, the newest of each set of columns. Never what was recorded while
-- the table was watched as something else, or is lost, nor what is of `others` (hashed): keys of other columns than the table's. Whole
-- keys, up to `limit` of them, and as many as `bytes` reach. Letters to be dropped are left out: a key that has no others is
-- answered with none, `drops` says that it has some. What the target's cursor has not passed is still to be read, and not yet
-- a letter of its key.
--
-- There may be very many letters of one key. They are met in the order of index held_of_key, which comparing rows asks for and
-- equality would not: from the first that is valid, and from the newest back to the one that decides.
with identities as materialized (
  select i.* from outbox.identities(array(select distinct w.table_name from outbox.held w where w.wanted is not null)) i
), whole as materialized (
  select s.id from identities i join outbox.shape s on s.table_name = i.table_name and s.columns @> i.columns
), asked as materialized (
  select w.table_name, md5(w.key) as hash, min(w.key) as key, min(w.id) as first, bool_or(w.wanted = 'discard') as discards,
         bool_or(w.wanted = 'discard' and (pg_visible_in_snapshot(w.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = w.xid and w.id <= t.upto))) as drops
    from outbox.held w
   where w.wanted is not null and w.table_name <> all (%(out)s::text[])
   group by 1, 2
), marked as materialized (
  select a.*
    from (select a.*, i.since_id from asked a join identities i on i.table_name = a.table_name order by a.first offset 0) a
   where a.discards
      or not exists (select from unnest(%(other_tables)s::text[], %(other_keys)s::text[]) o(table_name, key) where o.table_name = a.table_name and o.key = a.hash)
         and (select true from outbox.held n
               where (md5(n.key), n.table_name, n.id) >= (a.hash, a.table_name, '-9223372036854775808'::int8)
              and (md5(n.key), n.table_name, n.id) <= (a.hash, a.table_name, 9223372036854775807)
                 and n.id not between 1 and a.since_id - 1 and n.op <> 'lost'
               order by md5(n.key), n.table_name, n.id limit 1)
   limit %(limit)s
), decided as materialized (
  select k.*, (
           select h.id from outbox.held h
            where (md5(h.key), h.table_name, h.id) >= (k.hash, k.table_name, '-9223372036854775808'::int8)
              and (md5(h.key), h.table_name, h.id) <= (k.hash, k.table_name, 9223372036854775807)
              and h.wanted is distinct from 'discard' and h.id not between 1 and k.since_id - 1 and h.op <> 'lost'
              and (h.op = 'delete' or h.shape in (select id from whole)) and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
            order by md5(h.key) desc, h.table_name desc, h.id desc limit 1) as gone
    from marked k
), deciding as (
  select distinct on (k.first, h.op, h.shape) k.first, h.id, coalesce(octet_length(h.row), 0) as size
    from decided k
    join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.hash and h.id >= coalesce(k.gone, '-9223372036854775808'::int8)
   where h.wanted is distinct from 'discard' and h.id not between 1 and k.since_id - 1 and h.op <> 'lost'
     and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
   order by k.first, h.op, h.shape, h.id desc
), summed as (
  select k.*, h.id, h.size, sum(case when h.size <= %(row_bytes)s then h.size end) over (order by k.first)
         - sum(case when h.size <= %(row_bytes)s then h.size end) over (partition by k.first) as before
    from decided k left join deciding h on h.first = k.first
   where k.drops or h.id is not null
)
select h.xid, h.id, s.table_name, h.op, h.shape, s.key, case when s.size <= %(row_bytes)s then h.row end, coalesce(s.size, 0), false, h.created_at,
       coalesce(s.drops, false)
  from summed s left join outbox.held h on h.id = s.id
 where coalesce(s.before, 0) < %(bytes)s
 order by h.id
