-- Held keys (of a table; those of these letters), one line each: by the change that was refused, with what waits with it and
-- the letter of its parent.
select n.id, h.table_name, h.op, n.changes, n.attempts, n.since::text, h.sqlstate, h.reason, n.wanted,
       case when h.parent_key is not null then (select max(p.id) from outbox.held p
         where p.table_name = h.parent_table and md5(p.key) = md5(h.parent_key) and p.sqlstate is not null) end
  from (select coalesce(max(id) filter (where sqlstate is not null), max(id)) as id, count(*) as changes, max(attempts) as attempts,
               date_trunc('second', min(held_at)) as since, min(wanted) as wanted
          from outbox.held k
         where (%(table)s::text is null or table_name = %(table)s)
           and (%(ids)s::int8[] is null
                or exists (select from outbox.held l where l.id = any (%(ids)s) and l.table_name = k.table_name and md5(l.key) = md5(k.key)))
         group by table_name, md5(key)) n
  join outbox.held h on h.id = n.id
 order by n.id
