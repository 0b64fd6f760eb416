-- What a relay asks of the source alone: to remember where its target last stood, so that one restored from a backup is
-- recognised, and what has committed since it last looked.

create table if not exists outbox.relay (
  relay        text primary key,
  epoch        bigint not null,
  batch_no     bigint not null,
  snapshot     text,
  place        text,
  confirmed_at timestamptz not null default now()
);

comment on table outbox.relay is 'Where each relay''s target last stood: written when a relay claims it, and once a minute at most';

comment on column outbox.relay.snapshot is 'That of the cursor then; what waits is counted from it while the target cannot be asked';

comment on column outbox.relay.place is 'By what address it is reached: a copy of it elsewhere must not pass for it';

-- Epochs only grow, also when the target's own went back; so none is taken that is further on than claims can have led: the
-- target counts on from it, and would come to the end of its numbers. A role that may only read calls this.
create or replace function outbox.confirm(relay text, epoch bigint, batch_no bigint, snapshot text, place text default null) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if confirm.epoch not between 0 and coalesce((select r.epoch from outbox.relay r where r.relay = confirm.relay), 0) + 2147483648
     or confirm.batch_no < 0 then
    raise exception 'epoch % of relay % is out of reach', confirm.epoch, confirm.relay using errcode = 'numeric_value_out_of_range';
  end if;
  perform confirm.snapshot::pg_snapshot;  -- what is none would be read by every look at what waits
  insert into outbox.relay as r (relay, epoch, batch_no, snapshot, place)
  values (confirm.relay, confirm.epoch, confirm.batch_no, confirm.snapshot, nullif(confirm.place, ''))
  on conflict on constraint relay_pkey do update
     set epoch = greatest(r.epoch, excluded.epoch), batch_no = excluded.batch_no, snapshot = excluded.snapshot, place = coalesce(excluded.place, r.place),
         confirmed_at = now();
end
$$;

revoke all on function outbox.confirm(text, bigint, bigint, text, text) from public;

-- Does nobody lead with a later epoch? Asked in the transaction that writes letters down: whoever leads next has confirmed its epoch
-- before it looks at them, and waits for this transaction, so that nothing of one that was frozen comes behind that (promise I6).
create or replace function outbox.still_leads(relay text, epoch bigint) returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  latest bigint;
begin
  select r.epoch into latest from outbox.relay r where r.relay = still_leads.relay for share;
  return coalesce(latest <= still_leads.epoch, true);
end
$$;

revoke all on function outbox.still_leads(text, bigint) from public;

-- One look of a relay that is up to date: the window after the one that it read to its end, and that window's changes. As
-- window_open.sql, in one statement whose plans a session keeps: to plan them anew cost more than all the rest. Read
-- committed: each statement in here sees with a snapshot of its own, newer than those before it. In any other transaction,
-- which a role's default may begin, all would see with the first: then the answer is empty, and window_open.sql is asked.
--  1. the snapshot, and 2. the ceiling, as there.
--  3. the changes. The runs name the transactions that the last window did not see, the last run has no end. Whatever
--     the snapshot sees has ended, so this later statement sees it as well; what has ended in between is left for the
--     next look. So these are the window's changes, all of them. What still runs is not looked for, it may have written much.
--     None when more ids were drawn than `deep`: all would be sorted, and are better read in stretches.
--  4. only then what was pruned: TRUNCATE takes rows from older snapshots, too; and of which outbox, 5. the log, as there.
-- A generic plan is made when the outbox may be empty, and is kept when it holds millions: it may use nothing but the index
-- on xid. (`offset 0`, and `id > after` outside it, where the index on id is of no use.)
create or replace function outbox.look(
  after bigint, firsts xid8[], lasts xid8[], deep bigint, most int, most_bytes bigint, row_bytes bigint,
  out snapshot text, out in_recovery boolean, out started_us bigint, out ceiling bigint, out up_to_id bigint,
  out installation text, out flushed boolean, out opened_us bigint, out lsn text,
  out xids xid8[], out ids bigint[], out tables text[], out ops text[], out shapes int[], out keys text[], out "rows" text[],
  out sizes int[], out unflushed boolean[], out created timestamptz[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
set enable_seqscan = off
set jit = off
as $$
declare
  goal    pg_snapshot;
  written pg_lsn;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    return;
  end if;
  in_recovery := pg_is_in_recovery();
  if in_recovery then
    return;
  end if;
  goal := pg_current_snapshot();
  written := pg_current_wal_insert_lsn();
  select case when s.is_called then s.last_value else 0 end into ceiling from outbox.change_id_seq s;
  if ceiling <= deep then
    select array_agg(c.xid), array_agg(c.id), array_agg(c.table_name), array_agg(c.op), array_agg(c.shape), array_agg(c.key),
           array_agg(case when octet_length(c.row) <= row_bytes then c.row end), array_agg(coalesce(octet_length(c.row), 0)),
           array_agg(c.unflushed), array_agg(c.created_at)
      into xids, ids, tables, ops, shapes, keys, "rows", sizes, unflushed, created
      from (select c.*, sum(case when octet_length(c.row) <= row_bytes then octet_length(c.row) end) over (order by c.id rows between unbounded preceding and 1 preceding) as before
              from (select c.*
                      from unnest(firsts, lasts) run(first, last)
                     cross join lateral (select * from outbox.change c where c.xid >= run.first and c.xid <= run.last offset 0) c
                     where (run.first < run.last or pg_visible_in_snapshot(run.first, goal)) and pg_visible_in_snapshot(c.xid, goal)
                       and c.id > after
                     order by c.id
                     limit most) c
             order by c.id) c
     where coalesce(c.before, 0) < most_bytes;
  end if;
  select p.up_to_id, (select i.id from outbox.installation i) into up_to_id, installation from outbox.pruned p;
  lsn := pg_current_wal_flush_lsn();
  flushed := written <= lsn::pg_lsn;
  opened_us := (extract(epoch from clock_timestamp()) * 1000000)::bigint - 946684800000000;
  started_us := (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint;
  snapshot := goal;
end
$$;

revoke all on function outbox.look(bigint, xid8[], xid8[], bigint, int, bigint, bigint) from public;
