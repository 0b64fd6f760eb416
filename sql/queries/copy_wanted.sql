-- Tables that may be copied: the number of the newest wish (0: none), of the newest to prune and to begin anew, about how
-- many rows there are, and what a copy would be of now.
select w.table_name, coalesce(c.wish, 0), coalesce(c.prune, 0), coalesce(c.restart, 0),
       (with recursive tree as (  -- not pg_partition_tree: it waits for whoever alters a partition
          select outbox.table_named(w.table_name)::oid as relid union all select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid)
        select coalesce(sum(greatest(k.reltuples, 0)), 0) from tree t join pg_class k on k.oid = t.relid and k.relkind <> 'p')::bigint,
       outbox.aim_of(w)
  from outbox.watched w left join outbox.copy c on c.table_name = w.table_name
 where w.capture
