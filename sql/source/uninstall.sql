-- No migration: takes schema outbox away, once uninstall_triggers.sql has run. Nothing happens when it is gone already.
--
-- Without CASCADE: whatever is not outboxd's, and lies in the schema or depends on it, keeps it standing and is named.

do $$
declare
  routines text;
begin
  if to_regnamespace('outbox') is null then
    return;
  end if;
  drop table if exists outbox.mask_key;  -- one of its columns is made by a function
  select string_agg(format('outbox.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), ', ') into routines
    from pg_proc p where p.pronamespace = to_regnamespace('outbox');
  if to_regclass('outbox.watched') is not null then
    drop trigger if exists recount_shapes on outbox.watched;
  end if;
  if routines is not null then
    execute 'drop routine ' || routines;
  end if;
  drop table if exists outbox.change, outbox.pruned, outbox.watched, outbox.shape, outbox.shape_left, outbox.held, outbox.relay, outbox.copy,
    outbox.audience, outbox.travelled, outbox.unwatched, outbox.verification, outbox.heartbeat, outbox.migration, outbox.installation,
    outbox.leadership, outbox.turn;
  drop sequence if exists outbox.slot, outbox.change_id_seq, outbox.wish_seq;
  drop schema outbox;
end
$$;
