-- Changes that are committed here, else this would not see them, by transactions that this server has not seen end:
-- they came with a dump. Up to the last of them (1) everything did, (2) rows in all; (3) may this role write them;
-- (4) the highest id, (5) the highest id drawn.
with last as (
  select coalesce(max(id), 0) as id
    from outbox.change
   where xid >= pg_snapshot_xmin(pg_current_snapshot()) and not pg_visible_in_snapshot(xid, pg_current_snapshot())
)
select last.id,
       (select count(*) from outbox.change c where c.id <= last.id),
       has_table_privilege('outbox.change', 'update'),
       (select coalesce(max(id), 0) from outbox.change),
       (select case when is_called then last_value else 0 end from outbox.change_id_seq)
  from last
