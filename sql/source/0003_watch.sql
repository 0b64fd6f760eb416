-- Watching: which tables may be watched, and putting the capture triggers of sql/source/0002 on them.

-- Why `tbl` cannot be watched with this key, or null. One sentence with the way on.
create or replace function outbox.unfit(
  tbl regclass, keys text[], include text[], exclude text[], as_role name default current_user) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c     pg_class;
  me    pg_roles;
  bad   text;
  ident pg_sequence;
begin
  select * into c from pg_class where oid = tbl;
  select * into me from pg_roles where rolname = as_role;
  select s.* into ident from pg_sequence s
   where s.seqrelid = 'outbox.change_id_seq'::regclass;
  if ident.seqcache <> 1 then
    return format('outbox.change_id_seq has CACHE %s, so ids no longer follow the order of commits: alter sequence outbox.change_id_seq cache 1', ident.seqcache);
  elsif c.relkind not in ('r', 'p') then
    return format('%s is not a table', tbl);
  elsif c.relnamespace = 'outbox'::regnamespace then
    return format('%s belongs to the outbox itself', tbl);
  elsif tbl::text = 'outboxd.heartbeat' then
    return format('%s is the name of outboxd''s own heartbeats', tbl);
  elsif c.relpersistence <> 'p' then
    return format('%s is temporary or unlogged: a crash empties it without a trigger. Make it an ordinary table: alter table %s set logged', tbl, tbl);
  elsif c.relispartition then
    return format('%s is a partition: watch its root, %s', tbl, pg_partition_root(tbl));
  elsif c.relkind = 'r' and exists (select from pg_inherits i where i.inhrelid = tbl or i.inhparent = tbl) then
    return format('%s takes part in inheritance, where one key may stand in several tables: use partitioning, or plain tables', tbl);
  elsif not has_table_privilege(as_role, tbl, 'select') then
    return format('the capture functions run as %I, which may not read %s: grant select on %s to %I', as_role, tbl, tbl, as_role);
  elsif c.relrowsecurity and not me.rolsuper and not me.rolbypassrls
        and (c.relforcerowsecurity or not pg_has_role(as_role, c.relowner, 'usage')) then
    return format('%s has row level security, which would hide rows from the capture functions of %I: run watch as the table''s owner (without FORCE), or alter role %I bypassrls', tbl, as_role, as_role);
  elsif not has_table_privilege(as_role, tbl, 'trigger') then
    return format('%I may not create triggers on %s: grant trigger on %s to %I, and run watch as the table''s owner', as_role, tbl, tbl, as_role);
  elsif not pg_has_role(as_role, c.relowner, 'usage') then
    return format('only the owner of %s may let triggers fire always, and %I is not: run watch as %s, or grant %s to %I', tbl, as_role, c.relowner::regrole, c.relowner::regrole, as_role);
  elsif keys is null then
    return format('%s has no primary key: add one, or name a unique NOT NULL key: outbox.watch(%L, key_columns => array[...])', tbl, tbl);
  end if;

  select format(case when p.relkind = 'f' then '%s, a partition of %s, is a foreign table, whose rows change without a trigger here: detach it'
                     when p.relpersistence <> 'p' then '%s, a partition of %s, is unlogged: a crash empties it without a trigger. Make it an ordinary table: alter table %1$s set logged'
                     else '%s, a partition of %s, has another owner, and only an owner may let triggers fire always: alter table %1$s owner to %3$I' end,
                p.oid::regclass, tbl, as_role) into bad
    from pg_partition_tree(tbl) t join pg_class p on p.oid = t.relid
   where p.relkind = 'f' or p.relpersistence <> 'p' or not pg_has_role(as_role, p.relowner, 'usage')
   order by p.oid limit 1;
  if bad is not null then
    return bad;
  end if;

  select string_agg(quote_ident(k), ', ') into bad
    from unnest(coalesce(keys, '{}') || coalesce(include, '{}') || coalesce(exclude, '{}')) k
   where not exists (select from pg_attribute a where a.attrelid = tbl and a.attname = k and a.attnum > 0 and not a.attisdropped);
  if bad is not null then
    return format('%s has no column %s', tbl, bad);
  elsif include is not null and exclude is not null then
    return 'give include or exclude, not both';
  elsif not keys <@ outbox.row_columns(tbl, include, exclude) then
    return format('the key (%s) must be among the columns that travel', array_to_string(keys, ', '));
  end if;

  select string_agg(format('%I (%s)', a.attname, a.atttypid::regtype), ', ') into bad
    from pg_attribute a
   where a.attrelid = tbl and a.attname = any (keys)
     and not (outbox.base_type(a.atttypid)::regtype::text = any (array[
                'smallint', 'integer', 'bigint', 'oid', 'text', 'character varying', 'uuid', 'boolean', 'date', 'bytea',
                'timestamp without time zone', 'timestamp with time zone', 'time without time zone', 'numeric',
                'inet', 'cidr', 'macaddr', 'macaddr8', 'bit', 'bit varying', 'name', '"char"', 'pg_lsn', 'xid8'])
              or exists (select from pg_type t where t.oid = outbox.base_type(a.atttypid) and t.typtype = 'e'));
  if bad is not null then
    return format('key column %s: two equal values of this type may have different texts, so one row could travel under two keys. Choose another unique key: outbox.watch(%L, key_columns => array[...])', bad, tbl);
  end if;
  select string_agg(format('%I (%s)', a.attname, a.atttypid::regtype), ', ') into bad
    from pg_attribute a join pg_type t on t.oid = a.atttypid and t.typtype = 'd' join pg_type b on b.oid = outbox.base_type(t.oid) and b.typtype = 'e'
   where a.attrelid = tbl and a.attname = any (keys);
  if bad is not null then
    return format('key column %s is a domain over an enum, which Postgres cannot compare with itself: give the column the enum''s own type, or choose another unique key', bad);
  end if;
  select string_agg(format('%I (collation %s)', a.attname, l.collname), ', ') into bad
    from pg_attribute a join pg_collation l on l.oid = a.attcollation
   where a.attrelid = tbl and a.attname = any (keys) and not l.collisdeterministic;
  if bad is not null then
    return format('key column %s is compared by a nondeterministic collation, where different texts are one key: choose another unique key', bad);
  end if;

  if not outbox.is_key(tbl, keys) then
    if exists (select from pg_index i where i.indrelid = tbl and i.indisunique and not i.indimmediate
                  and (select array_agg(a.attname::text) from pg_attribute a
                        where a.attrelid = tbl and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1])) @> keys) then
      return format('the key (%s) of %s is DEFERRABLE: an insert does not wait for a concurrent delete of the same key, and the row would be lost. Recreate the constraint without DEFERRABLE, or choose another unique key', array_to_string(keys, ', '), tbl);
    end if;
    return format('(%s) is no key of %s: it needs a unique index on exactly these columns, all NOT NULL, not partial', array_to_string(keys, ', '), tbl);
  end if;
  if not has_table_privilege(as_role, 'outbox.change', 'insert') or not has_sequence_privilege(as_role, 'outbox.change_id_seq', 'usage')
     or not has_sequence_privilege(as_role, 'outbox.slot', 'usage') then
    return format('the capture functions run as %I, which may not write the outbox: grant insert on outbox.change to %I; grant usage on all sequences in schema outbox to %I', as_role, as_role, as_role);
  end if;
  return null;
end
$$;

-- Does a column of the table take its values from a sequence? The outbox draws its own number after them, and lastval()
-- of the session is that one then. Nothing sound gives it back: docs/decisions/0023.
create or replace function outbox.draws(tbl regclass) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from pg_attribute a where a.attrelid = tbl and a.attidentity <> '' and not a.attisdropped)
      or exists (select from pg_attrdef f
                   join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass
                   join pg_class c on c.oid = d.refobjid and c.relkind = 'S' where f.adrelid = tbl);
end
$$;

-- Put the triggers of watched table `watched_id` on it and on its partitions. The one for rows is cloned by Postgres, to
-- partitions that come later too, and its name is the table's alone: one that is attached may have such a trigger already.
create or replace function outbox.install_triggers(watched_id int, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  t record;
begin
  for t in
    select v.*, r.rel from (values
      ('outbox_row_' || watched_id, 'after insert or update or delete', 'row'),
      ('outbox_truncate', 'before truncate', 'statement'),
      ('outbox_truncated', 'after truncate', 'statement')) v(name, event, each),
      (select tbl union select relid from pg_partition_tree(tbl)) r(rel)
      join pg_class c on c.oid = r.rel
     where case each when 'row' then r.rel = tbl else v.name = 'outbox_truncate' or c.relkind = 'p' end
  loop
    execute format('create or replace trigger %I %s on %s for each %s execute function outbox.%I(%L)',
                   t.name, t.event, t.rel, t.each, 'capture_' || watched_id, watched_id);
    execute format('alter table %s enable always trigger %I', t.rel, t.name);
  end loop;
end
$$;

-- Take off what is not wanted: these triggers on a relation that is not one to `keep` (a table that has changed its name, a
-- detached partition), and on those to keep all others of the outbox. Clones go with the trigger they are of.
create or replace function outbox.remove_triggers(watched_id int, keep regclass[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  root regclass;
  t    record;
begin
  for root in
    select distinct coalesce(pg_partition_root(u.rel), u.rel) from outbox.unwanted_triggers(watched_id, keep) u
  loop
    -- From the root down, as whoever writes through it: otherwise each might hold what the other waits for.
    execute format('lock table %s in access exclusive mode', root);
  end loop;
  for t in select u.name, u.rel from outbox.unwanted_triggers(watched_id, keep) u loop
    execute format('drop trigger %I on %s', t.name, t.rel);
  end loop;
end
$$;

create or replace function outbox.unwanted_triggers(watched_id int, keep regclass[]) returns table (name name, rel regclass)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select g.tgname, g.tgrelid::regclass
      from pg_trigger g join pg_proc p on p.oid = g.tgfoid and p.pronamespace = 'outbox'::regnamespace and p.proname like 'capture\_%'
     cross join lateral (select p.proname = 'capture_' || watched_id) o(ours)
     where g.tgparentid = 0
       and case when g.tgrelid = any (keep) then not ours or g.tgname <> all (array['outbox_row_' || watched_id, 'outbox_truncate', 'outbox_truncated']) else ours end;
end
$$;

-- Record every change of `tbl` from now on. Run again after adding partitions or columns (until then a
-- new column is captured too, by a slower way). With capture => false only outbox.emit writes changes.
-- target, rename, constant, mask, filter: see outbox.watched. Not given they stay as they are, so that watching again
-- never takes a mask off; '' and {} take them away.
-- Run it as the table's owner. It takes a SHARE ROW EXCLUSIVE lock: set a short lock_timeout.
create or replace function outbox.watch(
  tbl regclass, key_columns text[] default null, include text[] default null, exclude text[] default null,
  capture boolean default true,
  target text default null, rename jsonb default null, constant jsonb default null, mask jsonb default null, filter text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
#variable_conflict use_column
declare
  keys   text[] := coalesce(key_columns, outbox.primary_key(tbl));
  reason text := outbox.unfit(tbl, keys, include, exclude);
  was    outbox.watched;
  w      outbox.watched;
  name   text;
  w_id   int;
  known  boolean;
  filled boolean;
begin
  if reason is not null then
    raise exception 'cannot watch %: %', tbl, reason using errcode = 'invalid_parameter_value';
  end if;
  perform pg_advisory_xact_lock(1869968482, 3);  -- who watches and who unwatches take turns
  if capture then
    execute format('lock table %s in share row exclusive mode', tbl);
  end if;
  select format('%I.%I', n.nspname, c.relname) into name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = tbl;
  select * into was from outbox.watched k where k.table_name = name;
  known := coalesce(was.capture, false);
  insert into outbox.watched as k (table_name, key_columns, include, exclude, capture, target, rename, constant, mask, filter)
  values (name, watch.key_columns, watch.include, watch.exclude, watch.capture, outbox.target_of(name, watch.target), nullif(watch.rename, '{}'),
          nullif(watch.constant, '{}'), nullif(watch.mask, '{}'), nullif(watch.filter, ''))
  on conflict (table_name) do update
     set key_columns = excluded.key_columns, include = excluded.include, exclude = excluded.exclude,
         capture = excluded.capture, watched_at = now(),
         target = case when watch.target is null then k.target else excluded.target end,
         rename = case when watch.rename is null then k.rename else excluded.rename end,
         constant = case when watch.constant is null then k.constant else excluded.constant end,
         mask = case when watch.mask is null then k.mask else excluded.mask end,
         filter = case when watch.filter is null then k.filter else excluded.filter end
  returning * into w;
  w_id := w.id;
  reason := case when not w.capture and num_nonnulls(w.rename, w.constant, w.mask, w.filter) > 0
                 then 'what the application emits travels as it is given: watch it with triggers, or without rename, constant, mask and filter'
                 else outbox.unmappable(tbl, keys, w.include, w.exclude, w.rename, w.constant, w.mask) end;
  if reason is not null then
    raise exception 'cannot watch %: %', tbl, reason using errcode = 'invalid_parameter_value';
  end if;
  update outbox.watched k set mapping = case when w.capture then outbox.compose_mapping(w, tbl) end where k.id = w_id;
  if not w.capture then
    perform outbox.remove_triggers(w_id, '{}');
    return name;
  end if;
  perform outbox.remove_triggers(w_id, array(select tbl union select relid from pg_partition_tree(tbl)));
  perform outbox.compose_capture(w_id, tbl);
  perform outbox.install_triggers(w_id, tbl);
  perform outbox.compose_copy(w_id);
  perform outbox.notice(name);
  if not known and outbox.draws(tbl) then
    raise warning '% has a column that a sequence fills: in a session that writes to it lastval() gives the outbox''s number from now on', tbl
      using hint = 'insert ... returning, or currval() with the sequence''s name';
  end if;
  -- Rows that were there before are copied (0008): whoever asks for a snapshot from here on sees them, or their change.
  if not known and current_setting('outbox.copy', true) is distinct from 'off' then
    execute format('select exists (select from %s)', tbl) into filled;
    if filled then
      perform outbox.ask_copy(name);
    end if;
  elsif known and (was.target, was.include, was.exclude, was.rename, was.constant, was.mask, was.filter)
                  is distinct from (w.target, w.include, w.exclude, w.rename, w.constant, w.mask, w.filter) then
    perform outbox.mapping_changed(name);
  end if;
  return name;
end
$$;

-- Stop recording changes of a table, named as outbox.watched has it; it need not exist any more. A name without
-- its schema is enough while only one such table is watched. Changes already recorded still travel.
create or replace function outbox.unwatch(table_name text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
declare
  parts text[] := parse_ident(table_name);
  known text[];
  w     outbox.watched;
begin
  perform pg_advisory_xact_lock(1869968482, 3);
  select array_agg(k.table_name order by k.table_name) into known
    from outbox.watched k
   where parse_ident(k.table_name) = parts
      or (cardinality(parts) = 1 and (parse_ident(k.table_name))[2] = parts[1]);
  if cardinality(known) > 1 then
    raise exception '% is watched in several schemas: %', table_name, array_to_string(known, ', ') using errcode = 'invalid_parameter_value';
  end if;
  delete from outbox.watched k where k.table_name = known[1] returning * into w;
  if not found then
    raise exception '% is not watched', table_name using errcode = 'invalid_parameter_value';
  end if;
  perform outbox.remove_triggers(w.id, '{}');
  execute format('drop function if exists outbox.%I()', 'capture_' || w.id);
  execute format('drop function if exists outbox.%I(tid)', 'row_' || w.id);
  perform outbox.drop_inside(w.id);
  execute format('drop function if exists outbox.%I(text, text[], int, bigint, bigint)', 'copy_' || w.id);
  delete from outbox.copy c where c.table_name = known[1];
  delete from outbox.verification v where v.table_name = known[1];
  return known[1];
end
$$;
