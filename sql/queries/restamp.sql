-- Changes that came with a dump become this transaction's: their own ids mean nothing here, and would be given out
-- once more later. All of them up to the last, also those whose ids happen to look familiar: as one transaction in
-- which nobody else's ids lie they go out in id order, as they once happened. Their letters go with them. Run again,
-- it finds nothing to do.
begin isolation level read committed;
set local synchronous_commit = on;
with last as materialized (
  select max(id) as id
    from outbox.change
   where xid >= pg_snapshot_xmin(pg_current_snapshot()) and not pg_visible_in_snapshot(xid, pg_current_snapshot())
), letters as (
  update outbox.held h set xid = pg_current_xact_id()
   where h.id <= (select id from last) or not pg_visible_in_snapshot(h.xid, pg_current_snapshot())
)
update outbox.change c set xid = pg_current_xact_id() where c.id <= (select id from last);
commit
