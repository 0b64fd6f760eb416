-- Prune: applied changes leave the outbox a slot at a time, by TRUNCATE, and new ones go to the next slot.
--
-- Never DELETE: an open snapshot anywhere in the cluster would keep the dead rows, and every read would walk them.
-- Never DROP or DETACH: those lock outbox.change, which every writer uses. TRUNCATE of one slot locks that slot,
-- and the slot that is being written is never emptied.

-- Empty at most one slot and move on to the next one when it is time. One short transaction.
--
-- `floor_id` is that of a cursor the target has stated: every change not applied yet, by transactions still open
-- too, has an id above it (outbox/cursor.py). Readers of windows need no lock: they want only what lies above.
--
-- It waits for a writer for at most 50 ms, and whoever queues up behind it for no longer. While no slot can be had
-- or none is free (a dump reads them, the target is away), the current one grows: an insert never fails for that.
create or replace function outbox.prune(
  floor_id bigint, retention interval,
  out emptied smallint, out up_to_id bigint, out locked boolean, out rotated boolean, out holder text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set enable_seqscan = off
as $$
declare
  turn    bigint := coalesce(pg_sequence_last_value('outbox.slot'), 0);
  slot    smallint;
  last_id bigint;
  is_due  boolean;
begin
  locked := false;
  rotated := false;
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception 'outbox.prune must see what has committed since: begin isolation level read committed'
      using errcode = 'active_sql_transaction';
  end if;
  begin
    lock table outbox.pruned in share row exclusive mode nowait;  -- one at a time
  exception when lock_not_available then
    holder := outbox.held_by('outbox.pruned', false);
    select p.up_to_id into up_to_id from outbox.pruned p;
    return;
  end;
  for n in turn + 1 .. turn + 3 loop  -- the oldest first
    slot := n % 4;
    execute format('select id, id <= $1 and created_at < clock_timestamp() - $2 from only outbox.change_%s order by id desc limit 1', slot)
       into last_id, is_due using floor_id, retention;
    continue when is_due is not true;
    begin
      execute format('lock table only outbox.change_%s in access exclusive mode', slot);
      -- Whoever had written here has ended by now, and a new statement sees it.
      execute format('select max(id) from only outbox.change_%s', slot) into last_id;
      if last_id <= floor_id then
        execute format('truncate only outbox.change_%s', slot);
        update outbox.pruned p set up_to_id = greatest(p.up_to_id, last_id);
        emptied := slot;
      end if;
    exception when lock_not_available then
      locked := true;
      holder := outbox.held_by(format('outbox.change_%s', slot)::regclass);
    end;
    exit when emptied is not null;
  end loop;

  execute format('select created_at < clock_timestamp() - $1 / 2 from only outbox.change_%s order by id limit 1', turn % 4)
     into is_due using retention;
  if is_due then
    execute format('select not exists (select from only outbox.change_%s)', (turn + 1) % 4) into rotated;
    if rotated then
      perform setval('outbox.slot', turn + 1);
    end if;
  end if;
  select p.up_to_id into up_to_id from outbox.pruned p;
end
$$;

revoke all on function outbox.prune(bigint, interval) from public;
