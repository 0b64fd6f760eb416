-- Letters (of a table; of the keys of these letters) behind one, in the order of index held_of_key, `page` at most, by key: the
-- newest, how many there are, and those that are to be marked where somebody wants this (`wanted`). To discard: each, for what comes
-- later is not to be dropped. To send again: the newest, and those that were to be dropped.
with page as (
  (select h.id, h.table_name, md5(h.key) as hash, h.wanted
     from outbox.held h
    where %(ids)s::int8[] is null and (%(table)s::text is null or h.table_name = %(table)s)
      and (md5(h.key), h.table_name, h.id) > (%(after_hash)s, %(after_table)s, %(after)s)
    order by md5(h.key), h.table_name, h.id limit %(page)s)
  union all
  (select h.id, h.table_name, h.hash, h.wanted
     from (select distinct n.table_name, md5(n.key) as hash from outbox.held n
            where n.id = any (%(ids)s) and (%(table)s::text is null or n.table_name = %(table)s)) k
    cross join lateral (
           select h.id, h.table_name, md5(h.key) as hash, h.wanted from outbox.held h
            where (md5(h.key), h.table_name, h.id) >= (k.hash, k.table_name, '-9223372036854775808'::int8)
              and (md5(h.key), h.table_name, h.id) <= (k.hash, k.table_name, 9223372036854775807)
              and (md5(h.key), h.table_name, h.id) > (%(after_hash)s, %(after_table)s, %(after)s)
            order by md5(h.key), h.table_name, h.id limit %(page)s) h
    order by h.hash, h.table_name, h.id limit %(page)s)
)
select p.table_name, p.hash, max(p.id), count(*), array_agg(p.id) filter (where %(wanted)s = 'discard' or p.wanted = 'discard')
  from page p group by 1, 2 order by 2, 1
