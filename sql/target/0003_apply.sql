-- Applying a batch: everything below runs in the one transaction of the request.
--
-- A batch is a header and groups. A group is {"table", "op", "columns"} and a JSON array of its rows (an
-- upsert), of keys (a delete), of keys to keep (a truncate), of keys held from here on (a hold) or no longer
-- (a release), how far the copy of its table has come (a copy) or its verification, what is to be compared (a digest, compare or
-- present), or a heartbeat. Identifiers come from the catalogue and the map, never from the document; values reach SQL as one
-- json parameter.

-- The door's answer: where the target stands, and what more there is to say.
create or replace function outboxd.answer(what text, c outboxd.cursor, more json default null) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return json_strip_nulls(json_build_object('answer', what, 'epoch', c.epoch, 'batch_no', c.batch_no, 'digest', c.digest,
                                            'cursor', c.cursor::json, 'more', more));
end
$$;

-- Gear 2 deletes rows that it inserts again: a foreign key that cascades or nulls would destroy others' rows.
create or replace function outboxd.refuse_cascades(tables text[]) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  c record;
begin
  select k.conname, k.conrelid::regclass as child, k.confrelid::regclass as parent into c
    from outboxd.mirror m
    join pg_constraint k on k.contype = 'f' and k.confrelid = to_regclass(format('%I.%I', m.target_schema, m.target_table))
   where m.table_name = any (tables) and k.confdeltype in ('c', 'n', 'd')
   limit 1;
  if found then
    raise exception 'foreign key % of % deletes or empties rows when rows of % are replaced: recreate it ON DELETE NO ACTION DEFERRABLE',
      c.conname, c.child, c.parent using errcode = 'OB005', constraint = c.conname::text, table = c.child::text;
  end if;
end
$$;

-- Foreign keys of mirrors that delete or empty rows when rows of `m` go, and for each the condition that such a row `c` refers to
-- row `t` of `m` and is not removed by this batch itself ($2: all groups' rows). The source has deleted or emptied its own rows
-- by then, and says so: what still refers to a row that goes is there on the source, and must not go along in silence.
create or replace function outboxd.dependents(m outboxd.mirror, heads json[] default '{}') returns table (name text, child regclass, condition text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select k.conname::text, k.conrelid::regclass,
         format('exists (select from %s c where %s%s)', k.conrelid::regclass, (
           select string_agg(format('t.%I operator(%I.%s) c.%I', p.attname, (select n.nspname from pg_namespace n where n.oid = o.oprnamespace), o.oprname, a.attname), ' and ')
             from unnest(k.conkey, k.confkey, k.conpfeqop) f(child, parent, op)
             join pg_attribute a on a.attrelid = k.conrelid and a.attnum = f.child
             join pg_attribute p on p.attrelid = k.confrelid and p.attnum = f.parent
             join pg_operator o on o.oid = f.op), (
           select string_agg(format(' and %s (select from json_to_recordset($2[%s]) as x(%s) where %s)',
                                    case heads[i] ->> 'op' when 'truncate' then 'exists' else 'not exists' end, i, e.definitions, e.same), '')
             from generate_subscripts(heads, 1) i
             join outboxd.mirror g on g.table_name = heads[i] ->> 'table' and heads[i] ->> 'op' <> 'upsert' and outboxd.place_of(g) = k.conrelid
            cross join lateral (select string_agg(v.definition, ', ') as definitions, string_agg(format('c.%I = %s', v.name, v.value), ' and ') as same
                                  from outboxd.columns_of(g, g.key_columns) v) e))
    from pg_constraint k
    join pg_class r on r.oid = k.conrelid
   where k.contype = 'f' and k.confdeltype in ('c', 'n', 'd') and k.confrelid = outboxd.place_of(m)
     and exists (select from outboxd.mirror c where c.target_schema = (select n.nspname from pg_namespace n where n.oid = r.relnamespace) and c.target_table = r.relname)
   order by 1, 2
$$;

-- A TRUNCATE cannot be held row by row: what it had to leave here has the table copied again, with prune, which ends it for each
-- row. True: it left something.
create or replace function outboxd.note_left(relay_name text, m outboxd.mirror, entries json) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  remains boolean;
begin
  if not exists (select from outboxd.dependents(m)) then
    return false;
  end if;
  execute format('select exists (select from %I.%I t where not exists (select from %s where %s))',
                 m.target_schema, m.target_table, outboxd.keys_sql(m), outboxd.same_key_sql(m)) into remains using entries;
  if remains then
    update outboxd.copy c set place = null where c.relay = relay_name and c.table_name = m.table_name;
  end if;
  return remains;
end
$$;

-- What the role that owns the door lacks to use what is outboxd's own: the statement that gives it, or null.
create or replace function outboxd.missing_own_right() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('grant %s to %I', lacks, current_user)
    from (select format('all on table %s', k.oid::regclass) from pg_class k
           where k.relnamespace = 'outboxd'::regnamespace and k.relkind in ('r', 'p')
             and exists (select from unnest(array['select', 'insert', 'update', 'delete']) p where not has_table_privilege(k.oid, p))
          union all
          select format('execute on function %s', f.oid::regprocedure) from pg_proc f
           where f.pronamespace = 'outboxd'::regnamespace and not has_function_privilege(f.oid, 'execute')) own(lacks)
   limit 1
$$;

-- What the role that owns the door lacks to write a mirror: the statement that gives it, or null.
create or replace function outboxd.missing_right(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
      when not has_schema_privilege(k.relnamespace, 'usage') then format('grant usage on schema %s to %I', k.relnamespace::regnamespace, current_user)
      when p.missing is not null then format('grant %s on %s to %I', p.missing, k.oid::regclass, current_user)
      when k.relrowsecurity and not r.rolsuper and not r.rolbypassrls and (k.relforcerowsecurity or not pg_has_role(k.relowner, 'usage'))
        then format('row level security of %s applies to %I: alter role %I bypassrls', k.oid::regclass, current_user, current_user)
      else format('%I may not do something that writing %s takes: see to what its triggers%s, defaults and types need', current_user, k.oid::regclass,
             (select ' (' || string_agg(distinct t.tgfoid::regprocedure::text, ', ') || ')' from pg_trigger t
               where t.tgrelid = k.oid and not t.tgisinternal and t.tgenabled in ('O', 'A'))) end
    from outboxd.mirror m
    join pg_class k on k.oid = outboxd.place_of(m)
    join pg_roles r on r.rolname = current_user
   cross join lateral (select string_agg(p, ', ') as missing from unnest(array['select', 'insert', 'update', 'delete']) p
                        where not has_table_privilege(k.oid, p)) p
   where m.table_name = name
$$;

-- Which triggers of a mirror do not find what they name without its schema: they run with the door's own, pinned search_path
-- and its rights, so that no path of theirs would do: in a schema where others may create, a name is theirs. Null: no such trigger.
create or replace function outboxd.blind_triggers(name text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('a trigger names something without its schema, which the door does not look into: write the schema before each name in %s; until then: ',
                string_agg(distinct t.tgfoid::regprocedure::text, ', '))
         || string_agg(distinct format('alter table %s disable trigger %I', t.tgrelid::regclass, t.tgname), '; ')
    from outboxd.mirror m
    join pg_trigger t on t.tgrelid = outboxd.place_of(m) and not t.tgisinternal and t.tgenabled in ('O', 'A')
    join pg_proc p on p.oid = t.tgfoid
    join pg_language l on l.oid = p.prolang and l.lanname <> 'c'
   where m.table_name = name and not exists (select from unnest(p.proconfig) s where s like 'search_path=%')
$$;

-- Was an error raised by a function of schema outboxd itself, on a way that leads through such functions alone? A trigger may
-- raise our own SQLSTATEs; a CHECK, a default or a function of any language may call our functions with a row's values in hand.
-- So every line has to be ours, from the innermost to the outermost, and no statement may be among them but calls of ours:
-- beneath one that writes, anybody's code runs. (An expression is of the function in the line below it; the last line is the
-- exposed function that was called, in whichever schema.)
create or replace function outboxd.is_ours(context text) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select context ~ '^PL/pgSQL function outboxd\.\w+\([^\n()]*\) line \d+ at RAISE(\n|$)'
     and not exists (
       select from regexp_split_to_table(regexp_replace(context, '\nPL/pgSQL function [^\n]*outboxd\(text\) line \d+ at RETURN$', ''), '\n') line
        where line !~ '^PL/pgSQL function outboxd\.\w+\([^()]*\) (line \d+ )?(at|during) [A-Za-z ]+$'
          and line !~* '^SQL statement "select outboxd\.\w+\([^"]*\)"$'
          and line !~ '^(SQL|PL/pgSQL) (expression|assignment) "[^"]*"$'
          and not exists (select from pg_proc f where f.pronamespace = 'outboxd'::regnamespace
                             and line ~ ('^SQL function "' || f.proname || '" (statement \d+|during startup|during inlining)$')))
$$;

-- Mirrored tables (null: all) that nobody else can write, and who has them locked: as a whole, or a partition, or a table that
-- they refer to. Who waits for such a lock is as good as who has it: whoever comes later waits behind, and it ends with either. Where a lock was waited for and there is no such, it was one of a row.
create or replace function outboxd.locked(name text default null) returns table (table_name text, said text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive held as materialized (
    select distinct l.relation, l.pid, l.virtualtransaction from pg_locks l
     where l.locktype = 'relation' and l.pid is distinct from pg_backend_pid()
       and l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
  ), above as (
    select h.relation, coalesce(i.indrelid, h.relation) as oid, h.pid, h.virtualtransaction from held h left join pg_index i on i.indexrelid = h.relation
    union
    select a.relation, i.inhparent, a.pid, a.virtualtransaction from above a join pg_inherits i on i.inhrelid = a.oid
  ), needed as (
    select a.oid, a.pid, a.virtualtransaction from above a
    union select k.conrelid, a.pid, a.virtualtransaction from above a join pg_constraint k on k.contype = 'f' and k.confrelid = a.oid
    -- A delete looks for rows that refer to it.
    union select k.confrelid, a.pid, a.virtualtransaction from above a join pg_constraint k on k.contype = 'f' and k.conrelid = a.oid
  )
  select m.table_name, format('%I.%I is locked on the target by %s', m.target_schema, m.target_table, string_agg(
           case when n.pid is null then 'a prepared transaction: pg_prepared_xacts names it'
                else format('process %s (role %s): select pg_terminate_backend(%s) ends it', n.pid, coalesce(s.usename, '?'), n.pid) end, ', '))
    from outboxd.mirror m
    join lateral (select distinct on (n.pid, n.virtualtransaction) n.* from needed n where n.oid = outboxd.place_of(m) order by n.pid, n.virtualtransaction limit 3) n on true
    left join pg_stat_activity s on s.pid = n.pid
   where locked.name is null or m.table_name = locked.name
   group by m.table_name, m.target_schema, m.target_table
$$;

-- Why a batch was refused. Postgres' own texts, and names that a trigger may have made up, can carry values of
-- the row (promise I10): only our own sentences travel, and names that the catalogue knows. A missing right is the
-- matter of one table, unless the door lacks one that is its own (OB009).
create or replace function outboxd.refused(
  c outboxd.cursor, gear int, at text, state text, message text, context text, schema_name text, table_name text, column_name text, constraint_name text) returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select outboxd.answer('refused', c, json_build_object(
      'sqlstate', case when own is not null then 'OB009' when state in ('OB005', 'OB006') and outboxd.is_ours(context) is not true then 'P0001' else state end, 'gear', gear, 'table', case when own is null then n.name end,
      'message', case when own is not null then 'function outboxd lacks a right of its own on the target: ' || own
                      when state like 'OB%' then case when outboxd.is_ours(context) then message end
                      when state = '42501' then outboxd.missing_right(n.name)
                      when state in ('42P01', '42703', '42704', '42883') then outboxd.blind_triggers(n.name)
                      when state = '55P03' and n.name is not null then (select l.said from outboxd.locked(n.name) l) end,
      'constraint', (select k.relname from pg_class k where k.relname = refused.constraint_name and k.relkind in ('i', 'I')
                      union select k.conname from pg_constraint k where k.conname = refused.constraint_name limit 1),
      'column', (select a.attname from pg_attribute a join pg_class k on k.oid = a.attrelid
                  where k.relnamespace::regnamespace::text = quote_ident(refused.schema_name) and k.relname = refused.table_name
                    and a.attname = refused.column_name)))
    from (select coalesce((select m.table_name from outboxd.mirror m
                            where m.target_schema = refused.schema_name and m.target_table = refused.table_name limit 1), at) as name) n,
         (select case when state = '42501' then outboxd.missing_own_right() end as own) o
$$;

-- The keys a relay holds: [table, key], the key as its text. The first of them behind `after` ([table, MD5 of the key]; null:
-- all); `held_after`, where there are more: an answer must end. `held_keys`: how many there are.
create or replace function outboxd.held_keys(relay_name text, after json default null) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with behind as (
    select h.table_name, h.key, md5(h.key) as hash from outboxd.held h
     where h.relay = relay_name and (after is null or (h.table_name, md5(h.key)) > (after ->> 0, after ->> 1))
     order by 1, 3 limit 5001
  ), page as (
    select b.*, row_number() over way as n, sum(octet_length(b.key)) over way - octet_length(b.key) as before
      from behind b window way as (order by b.table_name, b.hash)
  ), first as (
    select * from page p where p.n <= 5000 and p.before < 500000
  )
  select jsonb_strip_nulls(jsonb_build_object(
           'held', (select coalesce(jsonb_agg(jsonb_build_array(f.table_name, f.key) order by f.n), '[]') from first f),
           'held_after', (select jsonb_build_array(f.table_name, f.hash) from first f
                           where f.n < (select max(p.n) from page p) order by f.n desc limit 1),
           'held_keys', (select count(*) from outboxd.held h where h.relay = relay_name)))
$$;

-- Record which keys are held and which no longer, how far copies and verifications have come, and a heartbeat, as the batch says.
-- False: there was a heartbeat, and it could not be kept. Null: there was none.
create or replace function outboxd.note_held(relay_name text, parts text[]) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  g    json;
  kept boolean;
begin
  for i in 2 .. cardinality(parts) by 2 loop
    g := parts[i]::json;
    if g ->> 'op' = 'hold' then
      insert into outboxd.held (relay, table_name, key)
      select relay_name, g ->> 'table', k::text from json_array_elements(parts[i + 1]::json) k
      on conflict do nothing;
    elsif g ->> 'op' = 'release' then
      delete from outboxd.held h using json_array_elements(parts[i + 1]::json) k
       where h.relay = relay_name and h.table_name = g ->> 'table' and md5(h.key) = md5(k::text);
    elsif g ->> 'op' = 'copy' then
      perform outboxd.note_copy(relay_name, g ->> 'table', parts[i + 1]::json);
    elsif g ->> 'op' = 'verification' then
      perform outboxd.note_verification(relay_name, g ->> 'table', parts[i + 1]::json);
    elsif g ->> 'op' = 'heartbeat' then
      kept := outboxd.note_heartbeat(relay_name, parts[i + 1]::json);
    end if;
  end loop;
  return kept;
end
$$;

-- May a batch with this header be applied now? Null, or the answer that says why not. Locks the cursor row.
-- `after` is the digest of the batch this one was read behind. Two may be on their way at once: when the first is
-- planned anew and leads elsewhere, the second has the number that comes next and still must not be applied.
create or replace function outboxd.turn_away(header json, out c outboxd.cursor, out answer json)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Two on their way may change places: a connection had to be opened for the first, or it is the longer one. The
  -- second waits for it half a second; nothing is locked meanwhile. Where the first is at work its lock is waited for.
  for try in 1 .. 50 loop
    exit when header -> 'after' is null or not exists (
      select from outboxd.cursor
       where relay = header ->> 'relay' and epoch = (header ->> 'epoch')::bigint and batch_no = (header ->> 'batch_no')::bigint - 2);
    begin
      perform from outboxd.cursor where relay = header ->> 'relay' for update nowait;
      raise exception using errcode = 'OB000';
    exception
      when lock_not_available then exit;
      when sqlstate 'OB000' then perform pg_sleep(0.01);
    end;
  end loop;
  select * into c from outboxd.cursor where relay = header ->> 'relay' for update;
  if c.relay is null or c.epoch is distinct from (header ->> 'epoch')::bigint then
    answer := outboxd.answer('fenced', c);
  elsif c.batch_no = (header ->> 'batch_no')::bigint and c.digest = header ->> 'digest' then
    answer := outboxd.answer('duplicate', c, outboxd.held_keys(c.relay)::json);
  elsif c.batch_no is distinct from (header ->> 'batch_no')::bigint - 1
        or header -> 'after' is not null and coalesce(c.digest, '') is distinct from header ->> 'after' then
    answer := outboxd.answer('mismatch', c, outboxd.held_keys(c.relay)::json);
  end if;
end
$$;

-- A document of another version, or a broken one: what it asks for is not known here, so nothing of it is done.
create or replace function outboxd.unknown_op(name text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'the batch asks for something with % that this function outboxd does not know: run `outboxd setup target` of the daemon''s version', name
    using errcode = 'OB006';
end
$$;

-- Lead the target from one cursor to the next, or change nothing and say why.
-- Promise I3: of two requests with one epoch and batch_no at most one is applied, because both lock the
-- cursor row first and the second finds batch_no moved on. `duplicate` needs the digest too: a re-planned
-- batch of the same number with other changes must not pass for the one that is stored.
create or replace function outboxd.apply(header json, parts text[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c       outboxd.cursor;
  stands  record;
  given   record;
  m       outboxd.mirror;
  g       json;
  heads   json[];
  bodies  json[];
  mirrors outboxd.mirror[];  -- as they were looked up once: what is written, put back and noted is of the same table
  writers text[];
  marks   boolean := false;
  gentle  boolean := false;
  beat    boolean;
  seen    json;
  moved   text[] := '{}';
  attempt int := 0;
  stale   boolean;
  names   text[];
  at      text;
  gear    int;
  k       int;
  old     text;
  taken   text[];
  written bigint;
  n       bigint;
  state   text;
  message text;
  context text;
  wrong_schema     text;
  wrong_table      text;
  wrong_column     text;
  wrong_constraint text;
begin
  loop
    attempt := attempt + 1;
    gear := 1;
    written := 0;
    state := null;
    stale := false;
    taken := null;  -- an attempt that was taken back has put its rows back, too
    begin
      -- Outside of the block below, so that writers made here stay when gear 1 is taken back.
      if cardinality(parts) % 2 = 0 then
        perform outboxd.unknown_op('a group without rows');  -- a document that was cut between two records
      end if;
      for i in 2 .. cardinality(parts) by 2 loop
        g := parts[i]::json;
        if g ->> 'op' in ('hold', 'release', 'copy', 'verification', 'digest', 'compare', 'present', 'heartbeat') then
          marks := true;
          gentle := gentle or g ->> 'op' = 'verification';
          continue;
        end if;
        at := g ->> 'table';
        if coalesce(g ->> 'op', '') not in ('upsert', 'delete', 'truncate') then
          perform outboxd.unknown_op(at);
        end if;
        m := outboxd.mirror_of(at);
        g := outboxd.vacating(m, g);
        mirrors[i] := m;
        heads[i] := g;
        bodies[i] := parts[i + 1]::json;
        if g -> 'keyed' is not null then
          perform outboxd.require_same_key(m, g);
        end if;
        writers[i] := case when attempt < 3 and not outboxd.is_anew(m, g) then outboxd.writer_of(m, g, attempt = 2) end;
        if writers[i] is null then
          perform outboxd.require_key(m, g, bodies[i]);
        end if;
      end loop;
    exception when others or assert_failure then
      get stacked diagnostics state = returned_sqlstate, message = message_text, context = pg_exception_context, wrong_schema = schema_name,
        wrong_table = table_name, wrong_column = column_name, wrong_constraint = constraint_name;
    end;
    if attempt = 1 then
      -- All that went before needed no turn: of two batches on their way the second does it while the first is applied.
      stands := outboxd.turn_away(header);
      if stands.answer is not null then
        return stands.answer;
      end if;
      c := stands.c;
      if gentle then
        perform set_config('lock_timeout', '200ms', true);  -- a repair can wait, the changes behind it cannot
      elsif header -> 'gently' is not null then
        perform set_config('lock_timeout', '1s', true);  -- so that what takes long is told from what waits
      end if;
    end if;
    exit when state is not null;

    begin
      -- Gear 1: upserts parents first, then deletes children first; the document has that order.
      set constraints all deferred;
      for i in 2 .. cardinality(parts) by 2 loop
        continue when heads[i] is null;
        at := heads[i] ->> 'table';
        if heads[i] ->> 'op' <> 'upsert' and exists (select from outboxd.dependents(mirrors[i])) then
          n := outboxd.remove(mirrors[i], heads[i], bodies[i], heads, bodies);
        elsif writers[i] is null then
          n := outboxd.write(mirrors[i], heads[i], bodies[i]);
        else
          execute 'select outboxd.' || writers[i] || '($1)' into n using bodies[i];
          if n is null then
            stale := true;
            raise exception using errcode = 'OB000';
          elsif n < 0 then
            perform outboxd.require_key(mirrors[i], heads[i], bodies[i]);
            n := 0;
          end if;
        end if;
        written := written + n;
      end loop;
      at := null;
      set constraints all immediate;
    exception when foreign_key_violation or unique_violation or exclusion_violation or restrict_violation then
      begin
        -- Gear 2: take every touched row out, children first, put the final rows in, check once at the end. A
        -- batch of whole transactions then violates nothing that the source's own state does not.
        gear := 2;
        written := 0;
        for i in 2 .. cardinality(parts) by 2 loop
          continue when heads[i] is null;
          at := heads[i] ->> 'table';
          perform outboxd.require_key(mirrors[i], heads[i], bodies[i]);
        end loop;
        if header -> 'trial' is null then  -- else all of it is taken back (0005)
          perform outboxd.refuse_cascades(array(select h ->> 'table' from unnest(heads) h where h ->> 'op' = 'upsert'));
        end if;
        set constraints all deferred;
        for k in select i from generate_series(2, cardinality(parts), 2) i order by (parts[i]::json ->> 'rank')::int desc loop
          g := heads[k];
          continue when g is null;
          at := g ->> 'table';
          m := mirrors[k];
          names := array(select json_array_elements_text(g -> 'columns'));
          if g ->> 'op' = 'upsert' and g -> 'anew' is null and exists (select from outboxd.other_columns(m, names)) then
            execute outboxd.take_sql(m) into strict old using bodies[k];
            taken[k] := old;
          else
            perform outboxd.remove(m, g, bodies[k], heads, bodies);
          end if;
        end loop;
        for i in 2 .. cardinality(parts) by 2 loop
          g := heads[i];
          continue when g is null or g ->> 'op' <> 'upsert';
          at := g ->> 'table';
          m := mirrors[i];
          names := array(select json_array_elements_text(g -> 'columns'));
          if taken[i] is not null then
            execute outboxd.put_back_sql(m, names) using bodies[i], taken[i];
            get diagnostics n = row_count;
            written := written + n;
            execute outboxd.put_new_sql(m, names) using bodies[i], taken[i];
          else
            execute outboxd.insert_sql(m, names) using bodies[i];
          end if;
          get diagnostics n = row_count;
          written := written + n;
        end loop;
        at := null;
        set constraints all immediate;
      exception when others or assert_failure then
        get stacked diagnostics state = returned_sqlstate, message = message_text, context = pg_exception_context, wrong_schema = schema_name,
          wrong_table = table_name, wrong_column = column_name, wrong_constraint = constraint_name;
      end;
    when others or assert_failure then
      get stacked diagnostics state = returned_sqlstate, message = message_text, context = pg_exception_context, wrong_schema = schema_name,
        wrong_table = table_name, wrong_column = column_name, wrong_constraint = constraint_name;
    end;
    -- The table was altered since: its writers are made anew; if it is altered again right then, without any. So too
    -- where something is missing: it may be missing in what is planned only.
    exit when attempt = 3 or not stale and (state is null or state !~ '^42(?!501)');
  end loop;

  if state is not null then
    state := case state when 'OB014' then '23001' else state end;  -- no gear 2 for it, which would lead to the same
    if state = '55P03' and at is null then  -- a lock that is met where constraints are checked: whose, only the catalogue says
      at := (select min(l.table_name) from outboxd.locked() l where l.table_name in (select h ->> 'table' from unnest(heads) h));
    end if;
    return outboxd.refused(c, gear, at, state, message, context, wrong_schema, wrong_table, wrong_column, wrong_constraint);
  end if;
  for given in
    select distinct mirrors[i] as m, array(select json_array_elements_text(heads[i] -> 'columns')) as names
      from generate_series(2, cardinality(parts), 2) i where heads[i] ->> 'op' = 'upsert'
  loop
    perform outboxd.note_filled(c.relay, given.m, given.names);
  end loop;
  if marks then
    beat := outboxd.note_held(c.relay, parts);
    seen := outboxd.compared(c.relay, parts);
    moved := array_remove(array[seen ->> 'moved'], null);
  end if;
  -- After what the batch has noted: where it begins a copy, that is of what it has written, too.
  for m in select distinct u.* from unnest(mirrors) u where u.table_name is not null loop
    if outboxd.note_place(c.relay, m) then
      moved := moved || m.table_name;
    end if;
  end loop;
  for i in 2 .. cardinality(parts) by 2 loop
    if heads[i] ->> 'op' = 'truncate' and outboxd.note_left(c.relay, mirrors[i], bodies[i]) then
      moved := moved || mirrors[i].table_name;
    end if;
  end loop;
  if beat is not null then
    moved := moved || outboxd.moved(c.relay);
  end if;
  update outboxd.cursor
     set batch_no = (header ->> 'batch_no')::bigint, digest = header ->> 'digest', cursor = (header -> 'cursor')::text, updated_at = now()
   where relay = c.relay
  returning * into c;
  return outboxd.answer('applied', c, json_build_object('gear', gear, 'written', written, 'heartbeat', beat, 'compared', seen,
                                                        'moved', case when moved <> '{}' then to_json(moved) end));
end
$$;
