-- Have the letters of these keys sent again: of each the newest is marked, unless somebody wants something of it.
update outbox.held h set wanted = 'retry'
  from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key)
 where h.id = (select n.id from outbox.held n
                where (md5(n.key), n.table_name, n.id) >= (md5(k.key), k.table_name, '-9223372036854775808'::int8)
                  and (md5(n.key), n.table_name, n.id) <= (md5(k.key), k.table_name, 9223372036854775807)
                order by md5(n.key) desc, n.table_name desc, n.id desc limit 1)
   and h.wanted is null
