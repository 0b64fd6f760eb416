-- Of these letters those that are still there: is the relay still to do something about it, and why is its key refused?
select h.id, h.wanted is not null, h.table_name, r.reason
  from outbox.held h
  left join lateral (select n.reason from outbox.held n where n.table_name = h.table_name and md5(n.key) = md5(h.key) and n.sqlstate is not null
                      order by n.id desc limit 1) r on true
 where h.id = any (%(ids)s)
 order by h.id
