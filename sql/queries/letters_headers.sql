-- What the transactions of some keys' letters said of themselves, by letters of each, as batch_headers.sql answers it for a
-- batch: also of those that decide nothing any more.
select d.headers, count(*) over ()
  from (select h.headers, min(h.id) as first
          from (select distinct n.table_name, md5(n.key) as hash from outbox.held n where n.id = any (%(ids)s::int8[])) k
          join outbox.held h on h.table_name = k.table_name and md5(h.key) = k.hash
         where octet_length(h.headers) <= 16384
         group by h.headers) d
 order by d.first
 limit 128
