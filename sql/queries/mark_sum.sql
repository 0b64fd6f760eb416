-- What the outbox holds of a mark (outbox/cursor.py): how many changes, and the sum of their times, in microseconds since 2000. The runs name
-- exactly the transactions sent since the mark began; of those that are torn only a part was sent.
select count(*), (coalesce(sum((extract(epoch from m.created_at) * 1000000)::bigint - 946684800000000), 0) %% 1000000000000000)::bigint
  from (select c.created_at
          from unnest(%(first)s::xid8[], %(last)s::xid8[]) run(first, last)
          join outbox.change c on c.xid >= run.first and c.xid <= run.last
        union all
        select c.created_at
          from unnest(%(torn)s::xid8[], %(upto)s::int8[]) torn(xid, upto)
          join outbox.change c on c.xid = torn.xid and c.id <= torn.upto) m
