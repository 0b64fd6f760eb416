-- What the transactions of some letters said of themselves, as batch_headers.sql answers it for a batch.
select d.headers, count(*) over ()
  from (select h.headers, min(h.id) as first from outbox.held h
         where h.id = any (%(ids)s::int8[]) and octet_length(h.headers) <= 16384
         group by h.headers) d
 order by d.first
 limit 128
