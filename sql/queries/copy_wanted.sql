-- Tables that may be copied: the number of the newest wish (0: none), of the newest to prune and to begin anew, about how
-- many rows there are, and what a copy would be of now.
select w.table_name, coalesce(c.wish, 0), coalesce(c.prune, 0), coalesce(c.restart, 0),
       (select coalesce(sum(greatest(k.reltuples, 0)), 0)
          from (select outbox.table_named(w.table_name) as relid union select p.relid from pg_partition_tree(outbox.table_named(w.table_name)) p where p.isleaf) r
          join pg_class k on k.oid = r.relid)::bigint,
       outbox.aim_of(w)
  from outbox.watched w left join outbox.copy c on c.table_name = w.table_name
 where w.capture
