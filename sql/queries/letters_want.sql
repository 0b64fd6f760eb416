-- Ask the relay for something, for whole keys: of each the newest letter that this is about, and how many there are.
with marked as (
  update outbox.held h set wanted = %(wanted)s
   where (%(ids)s::int8[] is null
          or exists (select from outbox.held n where n.id = any (%(ids)s) and n.table_name = h.table_name and md5(n.key) = md5(h.key)))
     and (%(table)s::text is null or h.table_name = %(table)s)
  returning h.id, h.table_name, md5(h.key) as hash
)
select max(id), count(*) from marked group by table_name, hash order by 1
