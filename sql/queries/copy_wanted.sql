-- Tables that may be copied: the number of the newest wish (0: none), of the newest to prune and to begin anew, about how
-- many rows there are, and what a copy would be of now.
select a.table_name, coalesce(c.wish, 0), coalesce(c.prune, 0), coalesce(c.restart, 0),
       case when k.relkind = 'p' then (  -- not by pg_partition_tree: it waits for whoever alters a partition
              with recursive tree as (
                select k.oid as relid union all select i.inhrelid from tree t join pg_inherits i on i.inhparent = t.relid)
              select coalesce(sum(greatest(l.reltuples, 0)), 0) from tree t join pg_class l on l.oid = t.relid and l.relkind <> 'p')
            else coalesce(greatest(k.reltuples, 0), 0) end::bigint,
       a.aim
  from outbox.aims(null::text[]) a
  left join pg_class k on k.oid = a.relid
  left join outbox.copy c on c.table_name = a.table_name
