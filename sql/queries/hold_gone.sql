-- Rows that the source does not have as of a cursor, and the target does not let go (op: delete), or of which nothing is
-- known here (lost): of each a letter in
-- place of those that it has. It comes before all changes of the key that are still to be read, whatever their ids: these
-- are above 0. What its transaction is decides from which cursor on it counts: the last that this one has seen.
with gone as (
  select w.*, row_number() over () as n
    from unnest(%(tables)s::text[], %(keys)s::text[], %(ops)s::text[], %(states)s::text[], %(reasons)s::text[], %(parent_tables)s::text[], %(parent_keys)s::text[])
         w(table_name, key, op, sqlstate, reason, parent_table, parent_key)
), before as (
  delete from outbox.held h using gone g
   where h.table_name = g.table_name and md5(h.key) = md5(g.key)
     and (pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
          or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto))
)
insert into outbox.held (id, xid, table_name, op, key, created_at, sqlstate, reason, parent_table, parent_key)
select (select least(min(h.id), 0) from outbox.held h) - g.n, (pg_snapshot_xmax(%(snapshot)s::pg_snapshot)::text::numeric - 1)::text::xid8,
       g.table_name, g.op, g.key, clock_timestamp(), g.sqlstate, g.reason, g.parent_table, g.parent_key
  from gone g
