-- Rebase: the source is another one than the cursor speaks of; begin anew from what its outbox still has.

-- One transaction: whoever writes now is fenced, nothing it sends from here on is applied; the cursor becomes the
-- one given; of the held keys those in `keep`, as [table, key], stay held. What is recorded of copies and comparisons with
-- another installation of the outbox than the cursor's speaks of other rows, by other numbers. Run again, it does the same.
create or replace function outboxd.rebase(header json) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c outboxd.cursor;
begin
  insert into outboxd.cursor as k (relay, epoch, batch_no, cursor) values (header ->> 'relay', (header ->> 'epoch_above')::bigint + 1, 1, (header -> 'cursor')::text)
  on conflict (relay) do update
     set epoch = greatest(k.epoch, (header ->> 'epoch_above')::bigint) + 1, batch_no = k.batch_no + 1, digest = null, cursor = excluded.cursor, updated_at = now()
  returning * into c;
  delete from outboxd.held h
   where h.relay = c.relay
     and not exists (select from json_array_elements(header -> 'keep') k where k ->> 0 = h.table_name and k ->> 1 = h.key);
  delete from outboxd.copy k where k.relay = c.relay and split_part(k.aim, ':', 1) is distinct from header -> 'cursor' ->> 'installation';
  delete from outboxd.verification k where k.relay = c.relay and split_part(k.aim, ':', 1) is distinct from header -> 'cursor' ->> 'installation';
  -- Keys that were copied of the source that was say nothing of this one.
  update outboxd.copy k set step = 'rows', after = null, rows = 0, extra = 0, pruned = 0 where k.relay = c.relay and k.state = 'copying';
  return outboxd.answer('rebased', c);
end
$$;

revoke all on function outboxd.rebase(json) from public;
