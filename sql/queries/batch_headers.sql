-- What the transactions of a batch said of themselves, each text once, the oldest first; and how many there are. The runs
-- name exactly the batch's ids, and are found by the index on id (`offset 0`). One of more than `bytes` carries no
-- traceparent that anybody meant.
select d.headers, count(*) over ()
  from (select c.headers, min(c.id) as first
          from unnest(%(first)s::int8[], %(last)s::int8[]) run(first, last)
         cross join lateral (select c.id, c.headers from outbox.change c where c.id >= run.first and c.id <= run.last offset 0) c
         where octet_length(c.headers) <= %(bytes)s
         group by c.headers) d
 order by d.first
 limit %(limit)s
