-- Watching: which tables may be watched, and putting the capture triggers of sql/source/0002 on them.

-- Locked by whoever watches or unwatches, never written: a lock that only those can hold who may call outbox.take_turn.
create table if not exists outbox.turn (nobody boolean primary key);
revoke all on outbox.turn from public;

-- A session, as a person is told of it, and what ends it. Without a pid: a prepared transaction.
create or replace function outbox.session_named(pid int, virtualtransaction text, out who text, out remedy text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if pid is null then
    select format('prepared transaction %L (role %s)', p.gid, p.owner), format('rollback prepared %L', p.gid) into who, remedy
      from pg_locks l join pg_prepared_xacts p on p.transaction = l.transactionid
     where l.locktype = 'transactionid' and l.pid is null and l.virtualtransaction = session_named.virtualtransaction;
  else
    select format('pid %s (role %s, %s)', session_named.pid, coalesce(a.usename, '?'), coalesce(nullif(a.application_name, ''), 'without a name')) into who
      from pg_stat_activity a where a.pid = session_named.pid;
    remedy := format('select pg_terminate_backend(%s)', session_named.pid);
  end if;
  remedy := coalesce(remedy, 'select * from pg_prepared_xacts');
  -- Names are anybody's: nothing that a terminal or a log would obey.
  who := regexp_replace(coalesce(who, 'a session that has ended'), '[\x01-\x1f\x7f-\x9f]', '?', 'g');
end
$$;

-- Who else has a lock on this relation: the strongest first, three at most. Without `readers`: of those who only read it nobody.
create or replace function outbox.held_by(rel regclass, readers boolean default true) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select string_agg(n.who, ', ')
    from (select distinct on (l.pid, l.virtualtransaction) l.pid, l.virtualtransaction, l.mode from pg_locks l
           where l.locktype = 'relation' and l.relation = rel and l.granted and l.pid is distinct from pg_backend_pid()
             and l.database = (select d.oid from pg_database d where d.datname = current_database())
             and (readers or l.mode <> 'AccessShareLock')
           order by l.pid, l.virtualtransaction limit 3) l
   cross join lateral outbox.session_named(l.pid, l.virtualtransaction) n
$$;

-- Who watches and who unwatches take turns, until the transaction ends.
create or replace function outbox.take_turn() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  lock table outbox.turn in exclusive mode;
exception when lock_not_available then
  raise exception 'somebody else is watching or unwatching a table: %', coalesce(outbox.held_by('outbox.turn', false), 'it has ended by now')
    using errcode = 'lock_not_available', hint = 'try again when that has ended';
end
$$;

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
  elsif not has_schema_privilege(as_role, c.relnamespace, 'usage') then
    return format('the capture functions run as %I, which may not use schema %s: grant usage on schema %s to %I', as_role, c.relnamespace::regnamespace, c.relnamespace::regnamespace, as_role);
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

  select format(u.why, u.oid::regclass, tbl, as_role, u.relnamespace::regnamespace) into bad
    from (select p.oid, p.relnamespace, case
            when p.relkind = 'f' then '%s, a partition of %s, is a foreign table, whose rows change without a trigger here: detach it'
            when p.relpersistence <> 'p' then '%s, a partition of %s, is unlogged: a crash empties it without a trigger. Make it an ordinary table: alter table %1$s set logged'
            when not pg_has_role(as_role, p.relowner, 'usage') then '%s, a partition of %s, has another owner, and only an owner may let triggers fire always: alter table %1$s owner to %3$I'
            when not has_schema_privilege(as_role, p.relnamespace, 'usage') then '%s, a partition of %s, is in a schema that %I may not use, and the capture functions run as that role: grant usage on schema %s to %3$I'
            when not has_table_privilege(as_role, p.oid, 'select') then '%s, a partition of %s, may not be read by %I, as which the capture functions run: grant select on %1$s to %3$I'
            when p.relrowsecurity and p.relforcerowsecurity and not me.rolsuper and not me.rolbypassrls
              then '%s, a partition of %s, forces row level security, which would hide rows from the capture functions of %I: alter table %1$s no force row level security, or alter role %3$I bypassrls' end as why
            from pg_partition_tree(tbl) t join pg_class p on p.oid = t.relid) u
   where u.why is not null
   order by u.oid limit 1;
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
     or not has_sequence_privilege(as_role, 'outbox.slot', 'usage') or not has_function_privilege(as_role, 'outbox.mark(text, text)', 'execute')
     or not has_function_privilege(as_role, 'outbox.told(text)', 'execute')
     or not has_function_privilege(as_role, 'outbox.knock(text)', 'execute') then
    return format('the capture functions run as %1$I, which may not write the outbox: grant insert on outbox.change to %1$I; grant usage on sequence outbox.change_id_seq, outbox.slot to %1$I; grant execute on function outbox.mark(text, text), outbox.told(text), outbox.knock(text) to %1$I', as_role);
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

-- The triggers of a watched table: one for rows, which Postgres clones to partitions, later ones too, and whose name is
-- the table's alone, because one that is attached may have such a trigger already; and those for TRUNCATE.
create or replace function outbox.wanted_triggers(watched_id int, tbl regclass) returns table (name text, event text, each text, rel regclass)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select v.name, v.event, v.each, r.rel
      from (values ('outbox_row_' || watched_id, 'after insert or update or delete', 'row'),
                   ('outbox_truncate', 'before truncate', 'statement'),
                   ('outbox_truncated', 'after truncate', 'statement')) v(name, event, each)
     cross join (select tbl union select p.relid from pg_partition_tree(tbl) p) r(rel)
      join pg_class c on c.oid = r.rel
     where case v.each when 'row' then r.rel = tbl else v.name = 'outbox_truncate' or c.relkind = 'p' end;
end
$$;

-- Why the triggers cannot be put there, or null: a trigger of that name is the application's own, and stays.
create or replace function outbox.trigger_taken(watched_id int, tbl regclass) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select format('%s has a trigger %I of its own, and outboxd needs that name: alter trigger %2$I on %1$s rename to %3$I', g.tgrelid::regclass, g.tgname, 'own_' || g.tgname)
      from pg_trigger g join pg_proc p on p.oid = g.tgfoid
     where not (p.pronamespace = 'outbox'::regnamespace and p.proname ~ '^capture_[0-9]+$')
       and (g.tgrelid::regclass, g.tgname::text) in (
             select t.rel, t.name from outbox.wanted_triggers(watched_id, tbl) t
             union select p.relid, 'outbox_row_' || watched_id from pg_partition_tree(tbl) p)
     order by 1 limit 1);
end
$$;

-- Put the triggers of watched table `watched_id` on it and on its partitions.
create or replace function outbox.install_triggers(watched_id int, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  t record;
begin
  for t in select * from outbox.wanted_triggers(watched_id, tbl) loop
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
declare
  ours oid := to_regprocedure(format('outbox.capture_%s()', watched_id));
begin
  return query
    select g.tgname, g.tgrelid::regclass from pg_trigger g
     where g.tgparentid = 0 and g.tgfoid = ours
       and (g.tgrelid <> all (keep) or g.tgname <> all (array['outbox_row_' || watched_id, 'outbox_truncate', 'outbox_truncated']))
    union all
    select g.tgname, g.tgrelid::regclass from pg_trigger g
     where g.tgrelid = any (keep) and g.tgparentid = 0 and g.tgfoid is distinct from ours  -- no join: it would begin with every function
       and (select p.pronamespace = 'outbox'::regnamespace and p.proname ~ '^capture_[0-9]+$' from pg_proc p where p.oid = g.tgfoid);
end
$$;

-- Is another table watched, or mapped, whose place on the target is this one? Each would delete the other's rows.
create or replace function outbox.place_taken(of_table text, place text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select format('%s goes to %s on the target already, and each would delete the other''s rows: give it a place of its own (target), or unwatch %1$s first',
                  k.table_name, coalesce(place, of_table))
      from outbox.watched k where k.table_name <> of_table and coalesce(k.target, k.table_name) = coalesce(place, of_table));
end
$$;

-- Of the columns that are left out those that are to be there. One that is gone for good need not be, and stays left out all
-- the same: another of its name may come. One that was renamed is to be said anew.
create or replace function outbox.still_left_out(tbl regclass, exclude text[], mapping jsonb) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return nullif(array(select c.name from unnest(exclude) with ordinality c(name, n)
                       where c.name = any (names) or mapping -> 'at' -> c.name is null or names[(mapping -> 'at' ->> c.name)::int] is not null
                       order by c.n), '{}');
end
$$;

-- The functions that are made for one watched table, by their names. Whoever may create here may make others of these names.
create or replace function outbox.functions_of(watched_id int) returns setof pg_proc
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query select p.* from pg_proc p
    where p.pronamespace = 'outbox'::regnamespace
      and p.proname = any (array[concat('capture_', watched_id), concat('row_', watched_id), concat('copy_', watched_id), concat('inside_', watched_id)]::name[]);
end
$$;

-- Of these those that outboxd made: of a table that is captured, of its watcher's, with the very arguments.
create or replace function outbox.own_functions(w outbox.watched) returns setof oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select p.oid from pg_proc c cross join lateral outbox.functions_of(w.id) p
     where w.capture and c.oid = to_regprocedure(format('outbox.%I()', 'capture_' || w.id)) and p.proowner = c.proowner
       and (p.proname like 'inside%' and 'outbox.' || p.proname = w.mapping ->> 'inside'
            or p.oid in (c.oid, to_regprocedure(format('outbox.%I(tid)', 'row_' || w.id)), to_regprocedure(format('outbox.%I(text, text[], int, bigint, bigint)', 'copy_' || w.id))));
end
$$;

-- Who watched a table last, or null. Of a captured one whoever owns its functions. Of one that is emitted the role of that number, whatever
-- it is called by now: one of its name that was made since is another. In another cluster (a dump brought it there, or
-- pg_upgrade) numbers mean nothing, and the name counts, as it does for owners.
create or replace function outbox.watcher_of(w outbox.watched) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if w.capture then
    return (select p.proowner from pg_proc p where p.oid = to_regprocedure(format('outbox.%I()', 'capture_' || w.id)));
  end if;
  return (select r.oid from pg_roles r
           where case when w.watcher_system = (select s.system_identifier::text from pg_control_system() s) then r.oid = w.watcher else r.rolname = w.watcher_name end);
end
$$;

-- The id of a table that is watched, or mapped, for the first time: none of an id that somebody has made functions for.
create or replace function outbox.free_id() returns int
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  id int;
begin
  loop
    id := nextval(pg_get_serial_sequence('outbox.watched', 'id'));
    exit when not exists (select from outbox.functions_of(id));
  end loop;
  return id;
end
$$;

-- Drop the functions of a watched table, or of its names, that are not to be kept, as far as that may be.
create or replace function outbox.drop_functions(watched_id int, keep oid[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  one regprocedure;
begin
  for one in select p.oid from outbox.functions_of(watched_id) p where p.oid <> all (keep) and pg_has_role(p.proowner, 'usage') loop
    begin
      execute format('drop routine %s', one);
    exception when dependent_objects_still_exist then
      null;
    end;
  end loop;
end
$$;

-- Names for the functions of a table that is about to be captured: those of others go, or who has to end them is said. So does the
-- filter's, which is made anew. None is replaced where it lies: what depends on another's would then depend on ours.
create or replace function outbox.make_room(was outbox.watched, watched_id int, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  keep oid[] := array(select p.oid from outbox.own_functions(was) o join pg_proc p on p.oid = o where p.proname not like 'inside%');
  left_ record;
begin
  perform outbox.drop_functions(watched_id, keep);
  select p.oid::regprocedure as routine, p.proowner::regrole as owner into left_ from outbox.functions_of(watched_id) p where p.oid <> all (keep) order by 1 limit 1;
  if found then
    raise exception 'cannot watch %: %, which % owns, has the name of a function that outboxd needs', tbl, left_.routine, left_.owner
      using errcode = 'duplicate_function', hint = format('as that one, or a superuser: drop routine %s cascade', left_.routine);
  end if;
end
$$;

-- Lock this table (to read it: not its partitions), until the transaction ends. LOCK takes a name, and SQL that reads it does: from
-- here on it is this table's, as long as its schema has its own. Who had put a view in its place for a moment is found out.
create or replace function outbox.lock_table(tbl regclass, mode text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('lock table %s%s in %s mode', case when mode = 'access share' then 'only ' else '' end, tbl, mode);
  if outbox.table_named(tbl::text) is distinct from tbl
     or not exists (select from pg_locks l where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.relation = tbl and l.granted) then
    raise exception '% is being altered: its rows are read again', tbl using errcode = 'serialization_failure';
  end if;
end
$$;

-- Record every change of `tbl` from now on. Run again after adding partitions or columns (until then a
-- new column is captured too, by a slower way). With capture => false only outbox.emit writes changes.
-- What is not given stays as it is, so that watching again never takes a mask off, nor lets a column travel; '' and {}
-- take it away. (key_columns {}: the primary key again. include and exclude are one choice: either takes the other's place.)
-- Run it as the table's owner. It takes a SHARE ROW EXCLUSIVE lock: set a short lock_timeout.
create or replace function outbox.watch(
  tbl regclass, key_columns text[] default null, include text[] default null, exclude text[] default null,
  capture boolean default true,
  target text default null, rename jsonb default null, constant jsonb default null, mask jsonb default null, filter text default null) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off set constraint_exclusion = off
as $$
declare
  was    outbox.watched;
  w      outbox.watched;
  keys   text[];
  there  text[] := watch.exclude;
  reason text;
begin
  perform outbox.take_turn();
  select format('%I.%I', n.nspname, c.relname) into w.table_name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = tbl;
  if has_table_privilege('outbox.watched', 'select') then  -- else the sentence below says which right is missing
    select * into was from outbox.watched k where k.table_name = w.table_name;
  end if;
  w.key_columns := nullif(coalesce(watch.key_columns, was.key_columns), '{}');
  w.include := nullif(case when num_nonnulls(watch.include, watch.exclude) = 0 then was.include else watch.include end, '{}');
  w.exclude := watch.exclude;
  if num_nonnulls(watch.include, watch.exclude) = 0 then
    there := outbox.still_left_out(tbl, was.exclude, was.mapping);
    w.exclude := case when watch.capture then was.exclude else there end;
  end if;
  w.exclude := nullif(w.exclude, '{}');
  w.capture := watch.capture;
  w.target := case when watch.target is null then was.target else outbox.target_of(w.table_name, watch.target) end;
  w.rename := nullif(coalesce(watch.rename, was.rename), '{}');
  w.constant := nullif(coalesce(watch.constant, was.constant), '{}');
  w.mask := nullif(coalesce(watch.mask, was.mask), '{}');
  w.filter := nullif(coalesce(watch.filter, was.filter), '');
  keys := coalesce(w.key_columns, outbox.primary_key(tbl));
  reason := coalesce(
    outbox.unfit(tbl, keys, w.include, nullif(there, '{}'), current_user::name),
    outbox.place_taken(w.table_name, w.target),
    case when not w.capture and num_nonnulls(w.rename, w.constant, w.mask, w.filter) > 0
         then 'what the application emits travels as it is given: watch it with triggers, or without rename, constant, mask and filter'
         else outbox.unmappable(tbl, keys, w.include, w.exclude, w.rename, w.constant, w.mask) end);
  if reason is not null then
    raise exception 'cannot watch %: %', tbl, reason using errcode = 'invalid_parameter_value';
  end if;
  if capture then
    perform outbox.lock_table(tbl, 'share row exclusive'::text);
  elsif was.capture then
    perform outbox.ask_copy(w.table_name, true, false);  -- for when it is captured again, as unwatch does
    perform outbox.remove_triggers(was.id, '{}'::regclass[]);
    perform outbox.note_end(was.id, false);
    perform outbox.drop_functions(was.id, '{}'::oid[]);
  end if;
  insert into outbox.watched as k (id, table_name, key_columns, include, exclude, capture, target, rename, constant, mask, filter, watcher, watcher_name, watcher_system) overriding system value
  values (coalesce(was.id, outbox.free_id()), w.table_name, w.key_columns, w.include, w.exclude, w.capture, w.target, w.rename, w.constant, w.mask, w.filter,
          (select r.oid from pg_roles r where r.rolname = current_user), current_user, (select s.system_identifier::text from pg_control_system() s))
  on conflict on constraint watched_table_name_key do update
     set key_columns = excluded.key_columns, include = excluded.include, exclude = excluded.exclude, capture = excluded.capture,
         target = excluded.target, rename = excluded.rename, constant = excluded.constant, mask = excluded.mask, filter = excluded.filter,
         mapped = false, watcher = excluded.watcher, watcher_name = excluded.watcher_name, watcher_system = excluded.watcher_system, watched_at = now(), shapes_above = coalesce((select max(s.id) from outbox.shape s where s.table_name = excluded.table_name), 0)
  returning * into w;
  if w.capture then
    if not was.capture then  -- what went meanwhile nobody recorded: a copy is of something else from here on
      update outbox.watched k set interrupted = outbox.next_wish() where k.id = w.id returning * into w;
    end if;
    perform outbox.install(w, was, tbl);
  else
    update outbox.watched k set mapping = null, layout = null, aimed = null where k.id = w.id;
    perform outbox.remove_triggers(w.id, '{}'::regclass[]);
  end if;
  return w.table_name;
end
$$;

-- Triggers, functions and what is to be copied of a table that is watched as `w` says, and was as `was` says.
create or replace function outbox.install(w outbox.watched, was outbox.watched, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  known  boolean := coalesce(was.capture, false);
  copies boolean := current_setting('outbox.copy', true) is distinct from 'off';
  taken  text := outbox.trigger_taken(w.id, tbl);
  -- Has all that is on the target passed this very filter?
  steady boolean := case when known then was.filter is not distinct from w.filter and coalesce((was.mapping -> 'lasting')::bool, true)
                         else not exists (select from outbox.shape s where s.table_name = w.table_name) end;
  filled boolean;
begin
  if taken is not null then
    raise exception 'cannot watch %: %', tbl, taken using errcode = 'invalid_parameter_value';
  end if;
  if known then
    perform outbox.notice(w.table_name);  -- as it is found: who let its triggers sleep, or lost them, is seen now or never
  end if;
  perform outbox.make_room(was, w.id, tbl);
  update outbox.watched k set mapping = outbox.compose_mapping(w, tbl, steady) where k.id = w.id;
  update outbox.watched k set left_home = nullif(array(
           select c from (select unnest(outbox.projected(outbox.row_columns(tbl, was.include, was.exclude), was.mapping)) union select unnest(was.left_home)
                          except select unnest(outbox.projected(outbox.row_columns(tbl, k.include, k.exclude), k.mapping))) travelled(c) order by c), '{}')
   where k.id = w.id and known;
  if has_table_privilege('outbox.travelled', 'select') and has_table_privilege('outbox.travelled', 'insert') and has_table_privilege('outbox.travelled', 'update') then
    insert into outbox.travelled (relid, title, number, name)
    select tbl, r.value, a.attnum, r.key from outbox.watched k cross join jsonb_each_text(k.mapping -> 'rename') r join pg_attribute a on a.attrelid = tbl and a.attname = r.key
     where k.id = w.id
    union all select tbl, c, 0, '' from outbox.watched k cross join jsonb_object_keys(k.mapping -> 'constant') c where k.id = w.id
    on conflict on constraint travelled_pkey do update set number = excluded.number, name = excluded.name;
  end if;
  perform outbox.remove_triggers(w.id, array(select tbl union select relid from pg_partition_tree(tbl)));
  perform outbox.compose_capture(w.id, tbl);
  perform outbox.install_triggers(w.id, tbl);
  perform outbox.compose_copy(w.id);
  perform outbox.installed(w.id);
  if not known and outbox.draws(tbl) then
    raise warning '% has a column that a sequence fills: in a session that writes to it lastval() gives the outbox''s number from now on', tbl
      using hint = 'insert ... returning, or currval() with the sequence''s name';
  end if;
  -- Rows that were there before are copied (0008): whoever asks for a snapshot from here on sees them, or their change.
  -- A snapshot from before the lock does not show whether there are any.
  if not known and copies then
    filled := current_setting('transaction_isolation') in ('repeatable read', 'serializable');
    if not filled then
      execute format('select exists (select from %s)', tbl) into filled;
    end if;
    if filled then
      perform outbox.ask_copy(w.table_name, false, false);
    end if;
  elsif not known and not outbox.has_letters(w.table_name) then
    delete from outbox.copy c where c.table_name = w.table_name;  -- what unwatch asked for
  elsif (was.target, was.include, was.exclude, was.rename, was.constant, was.mask, was.filter)
                  is distinct from (w.target, w.include, w.exclude, w.rename, w.constant, w.mask, w.filter) then
    perform outbox.mapping_changed(w.table_name);
  end if;
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
  perform outbox.take_turn();
  select array_agg(k.table_name order by k.table_name) into known
    from outbox.watched k
   where parse_ident(k.table_name) = parts
      or (cardinality(parts) = 1 and (parse_ident(k.table_name))[2] = parts[1]);
  if cardinality(known) > 1 then
    raise exception '% is watched in several schemas: %', table_name, array_to_string(known, ', ') using errcode = 'invalid_parameter_value';
  end if;
  -- Watched again it is copied, with prune: rows that go meanwhile are deleted nowhere else.
  if exists (select from outbox.watched k where k.table_name = known[1] and k.capture) then
    perform outbox.ask_copy(known[1], true, false);
  end if;
  select * into w from outbox.watched k where k.table_name = known[1];
  if not found then
    raise exception '% is not watched', table_name using errcode = 'invalid_parameter_value';
  end if;
  perform outbox.remove_triggers(w.id, '{}'::regclass[]);
  perform outbox.note_end(w.id, true);
  delete from outbox.watched k where k.id = w.id;
  perform outbox.drop_functions(w.id, '{}'::oid[]);
  delete from outbox.verification v where v.table_name = known[1];
  return known[1];
end
$$;
