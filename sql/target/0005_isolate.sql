-- Gear 3: which rows of a refused batch does the target refuse?
--
-- One request, one transaction, and in the end nothing has changed: parts of the batch are applied by the same
-- function that applies a batch, in halves until single rows are left, and all of it is taken back. What is
-- found here the relay first records on the source; only then it sends the batch without those rows.
--
-- Composing a batch's statements costs more than running them for one row: for single rows they are composed once,
-- and where thousands are refused most tries are of single rows (2000 of 2000 took longer than the door's timeout).

-- The batch's rows in the document's order: group, position, and the row as a batch of its own would have it. A
-- truncate cannot be divided.
create or replace function outboxd.entries(parts text[]) returns table (part int, pos int, entry text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  op text;
begin
  for i in 2 .. cardinality(parts) by 2 loop
    op := parts[i]::json ->> 'op';
    if op = 'truncate' then
      return query select i, 0, parts[i + 1];
    elsif op in ('upsert', 'delete') then
      return query select i, n::int - 1, e::text from json_array_elements(parts[i + 1]::json) with ordinality u(e, n);
    end if;
  end loop;
end
$$;

-- The batch with each row in a group of its own: what fits row by row is applied so, in the document's order.
create or replace function outboxd.singly(parts text[]) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
  select parts[1:1] || array_agg(p.text order by p.part, p.n, p.half)
    from (select h.part, e.n, v.half, v.text
            from generate_series(2, cardinality(parts), 2) h(part)
           cross join lateral json_array_elements(case when parts[h.part]::json ->> 'op' in ('upsert', 'delete') then parts[h.part + 1]::json else '[1]' end)
                 with ordinality e(entry, n)
           cross join lateral (values (0, parts[h.part]),
                                      (1, case when parts[h.part]::json ->> 'op' in ('upsert', 'delete') then format('[%s]', e.entry) else parts[h.part + 1] end)) v(half, text)) p
$$;

-- Somebody's lock was waited for: the next one is waited for half as long, down to a millisecond. However many rows are locked,
-- and whoever has each, all of these waits together take less than half a second, and a millisecond a row.
create or replace function outboxd.wait_less() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config('lock_timeout', greatest(rtrim(current_setting('lock_timeout'), 'ms')::int / 2, 1) || 'ms', true);
end
$$;

-- Apply some entries; null, or why they are refused. `header` is that of the batch whose number comes next. A trial: what only
-- gear 2 can write is no row's fault, also where a foreign key that acts forbids gear 2.
create or replace function outboxd.try_entries(relay_name text, parts text[], of_part int[], entries text[], chosen int[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  doc    text[] := array[''];
  said   json;
  g      record;
  header json := (select json_build_object('relay', k.relay, 'epoch', k.epoch, 'batch_no', k.batch_no + 1, 'digest', '', 'cursor', k.cursor::json, 'trial', true)
                    from outboxd.cursor k where k.relay = relay_name);
begin
  for g in
    select of_part[c] as part, string_agg(entries[c], ',' order by n) as rows
      from unnest(chosen) with ordinality u(c, n) group by 1 order by 1
  loop
    doc := doc || parts[g.part] || case when parts[g.part]::json ->> 'op' = 'truncate' then g.rows else '[' || g.rows || ']' end;
  end loop;
  said := outboxd.apply(header, doc);
  if said #>> '{more,sqlstate}' = '55P03' then
    perform outboxd.wait_less();
  end if;
  return case when said ->> 'answer' = 'applied' then null else coalesce(said -> 'more', '{}') end;
end
$$;

-- Read keys ($1), and nothing else: this raises where one is no value of the key's types.
create or replace function outboxd.read_keys_sql(m outboxd.mirror) returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select format('select count(row(%s)::text) from json_to_recordset($1) as x(%s)', string_agg(c.value, ', '), string_agg(c.definition, ', '))
    from outboxd.columns_of(m, m.key_columns) c
$$;

-- The statement that a single row of each group becomes; null where it takes the whole of `apply`: a truncate, rows
-- that may have to be renumbered (gear 2), deletes that others' rows may stand against, a group that no statement can be made of.
-- A delete reads its key whatever the plan: of an empty table Postgres would not look at it, and a key that is no value, which
-- refuses the batch, would be nobody's fault.
create or replace function outboxd.row_statements(parts text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  made  text[] := '{}';
  m     outboxd.mirror;
  g     json;
  names text[];
begin
  for i in 2 .. cardinality(parts) by 2 loop
    g := parts[i]::json;
    continue when g ->> 'op' not in ('upsert', 'delete');
    begin
      m := outboxd.mirror_of(g ->> 'table');
      g := outboxd.vacating(m, g);
      perform outboxd.require_key(m, g, parts[i + 1]::json);
      names := array(select json_array_elements_text(g -> 'columns'));
      if g ->> 'op' = 'delete' then
        made[i] := case when not exists (select from outboxd.dependents(m)) then outboxd.delete_sql(m) || format(' and (%s) >= 0', outboxd.read_keys_sql(m)) end;
      elsif outboxd.renumbers_sql(m, names) is null then
        made[i] := outboxd.upsert_sql(m, names, outboxd.is_anew(m, g));
      end if;
    exception when others or assert_failure then
      made[i] := null;
    end;
  end loop;
  return made;
end
$$;

-- Apply chosen entries one by one; for each null, or why it is refused. Gear 2 could not help a single row: it would
-- lead to the same state. Without `keep` each is taken back at once. Raises OB015 where very many are locked: that is their
-- table's matter, and is not found out row by row.
create or replace function outboxd.try_alone(relay_name text, parts text[], statements text[], of_part int[], entries text[], chosen int[], keep boolean) returns json[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  whys   json[] := '{}';
  l      int;
  at     text;
  reason text[];
  known  text[];
  said   json;
  fits   boolean;
  locked int := 0;
  state  text;
  schema_is     text;
  table_is      text;
  column_is     text;
  constraint_is text;
begin
  for n in 1 .. cardinality(chosen) loop
    l := chosen[n];
    fits := false;
    if statements[of_part[l]] is null then
      whys[n] := case when keep then outboxd.try_entries(relay_name, parts, of_part, entries, chosen[n:n]) end;
    else
      begin
        set constraints all deferred;
        execute statements[of_part[l]] using ('[' || entries[l] || ']')::json;
        set constraints all immediate;
        whys[n] := null;
        fits := not keep;
        if fits then
          raise exception using errcode = 'OB000';
        end if;
      exception when others or assert_failure then
        continue when fits;  -- not by what was raised: a trigger may raise that as well
        get stacked diagnostics state = returned_sqlstate, schema_is = schema_name, table_is = table_name,
          column_is = column_name, constraint_is = constraint_name;
        at := parts[of_part[l]]::json ->> 'table';
        reason := array[at, state, schema_is, table_is, column_is, constraint_is];
        if reason is distinct from known then  -- mostly the one before was refused for the same
          said := outboxd.refused(null, 1, at, state, null, null, schema_is, table_is, column_is, constraint_is) -> 'more';
          known := reason;
        end if;
        whys[n] := said;
        if state = '55P03' then
          perform outboxd.wait_less();
        end if;
      end;
    end if;
    if whys[n] ->> 'sqlstate' = '55P03' then
      locked := locked + 1;
      if locked > 1000 then
        raise exception using errcode = 'OB015', table = (  -- a lock that is met in the end, by a foreign key, is of no table
          select coalesce(w.why ->> 'table', parts[of_part[chosen[w.n]]]::json ->> 'table') from unnest(whys) with ordinality w(why, n)
           where w.why ->> 'sqlstate' = '55P03' group by 1 order by count(*) desc limit 1);
      end if;
    end if;
  end loop;
  return whys;
end
$$;

-- The row a refused one refers to, when that is held or refused itself: {"table", "key"} or {"table", "part", "pos"}.
-- A foreign key of another table speaks of the row that still refers to the refused one: its table alone is named. So it is where
-- something unique is taken, or a parent is nowhere; a table that is no mirror is called as the target calls it.
create or replace function outboxd.held_relative(relay_name text, parts text[], of_part int[], of_pos int[], entries text[], refused int[], this int, why json) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  own   text := parts[of_part[this]]::json ->> 'table';
  k     record;
  parents int[];
  match json;
begin
  if why ->> 'sqlstate' in ('23505', '23P01') then
    return json_build_object('table', own, 'is', 'taken');
  elsif why ->> 'sqlstate' not in ('23503', '23001') then
    return null;
  end if;
  select coalesce(c.table_name, f.conrelid::regclass::text) as child, coalesce(p.table_name, f.confrelid::regclass::text) as parent,
         p.table_name is not null as mirrored, f.conkey, f.conrelid, f.confkey, f.confrelid into k
    from pg_constraint f
    left join outboxd.mirror c on outboxd.place_of(c) = f.conrelid
    left join outboxd.mirror p on outboxd.place_of(p) = f.confrelid
   where f.contype = 'f' and f.conname = why ->> 'constraint' and own in (c.table_name, p.table_name)
   order by (c.table_name = own) desc nulls last limit 1;
  if not found then
    return null;
  elsif k.child <> own or parts[of_part[this]]::json ->> 'op' <> 'upsert' then
    return json_build_object('table', k.child);
  elsif not k.mirrored then
    return json_build_object('table', k.parent, 'is', 'missing');
  end if;
  parents := array(select i from generate_series(2, cardinality(parts), 2) i where parts[i]::json ->> 'table' = k.parent);
  with pairs as (
    select (select attname from pg_attribute where attrelid = k.conrelid and attnum = a) as mine,
           (select attname from pg_attribute where attrelid = k.confrelid and attnum = b) as theirs
      from unnest(k.conkey, k.confkey) u(a, b)
  ), candidates as (
    select h.key::json as key, json_build_object('table', h.table_name, 'key', h.key) as found, 0 as rank
      from outboxd.held h where h.relay = relay_name and h.table_name = k.parent
    union all
    select entries[r]::json, json_build_object('table', k.parent, 'part', of_part[r], 'pos', of_pos[r]), 1
      from unnest(refused) r where r <> this and of_part[r] = any (parents)
  )
  select c.found into match from candidates c
   where (select bool_and(c.key ->> p.theirs is not distinct from entries[this]::json ->> p.mine) from pairs p)
   order by c.rank limit 1;
  return coalesce(match, json_build_object('table', k.parent, 'is', 'missing'));
end
$$;

create or replace function outboxd.isolate(header json, parts text[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c        outboxd.cursor;
  stands   record;
  of_part  int[];
  of_pos   int[];
  entries  text[];
  statements text[];
  whys     json[] := '{}';
  tried    json[];
  rest     int[] := '{}';
  todo     int4range[];
  lo       int;
  hi       int;
  tries    int := 0;
  left_now int[] := '{}';
  left_before int[];
  locked   int[] := '{}';
  crowded  text;
  together int[];
begin
  stands := outboxd.turn_away(header);
  if stands.answer is not null then
    return stands.answer;
  end if;
  c := stands.c;
  perform set_config('lock_timeout', '200ms', true);  -- a row that somebody has locked: it is one of many, and is named
  select array_agg(e.part order by e.part, e.pos), array_agg(e.pos order by e.part, e.pos), array_agg(e.entry order by e.part, e.pos)
    into of_part, of_pos, entries from outboxd.entries(parts) e;
  statements := outboxd.row_statements(parts);
  begin
    -- 1. Rows whose own values are refused, whatever else is in the batch: one by one, on the state before it.
    tried := outboxd.try_alone(c.relay, parts, statements, of_part, entries, array(select generate_series(1, cardinality(entries))), false);
    for l in 1 .. coalesce(cardinality(entries), 0) loop
      if tried[l] ->> 'sqlstate' = '55P03' then
        locked := locked || l;
        whys[l] := tried[l];
      elsif tried[l] ->> 'sqlstate' ~ '^(22...|23502|23514)$' then
        left_now := left_now || l;
        whys[l] := tried[l];
      else
        rest := rest || l;
      end if;
    end loop;
    -- 2. The others in halves, in the document's order: what can be applied is, what is refused by itself stays. Where
    -- very many are refused, halving would take longer than the door may: from some point on one by one.
    todo := array[int4range(1, cardinality(rest) + 1)];
    while cardinality(todo) > 0 loop
      lo := lower(todo[cardinality(todo)]);
      hi := upper(todo[cardinality(todo)]);
      todo := todo[1:cardinality(todo) - 1];
      continue when lo is null;
      tries := tries + 1;
      if hi - lo > 1 and tries <= 64 then
        if outboxd.try_entries(c.relay, parts, of_part, entries, rest[lo:hi - 1]) is not null then
          todo := todo || int4range((lo + hi) / 2, hi) || int4range(lo, (lo + hi) / 2);
        end if;
        continue;
      end if;
      tried := outboxd.try_alone(c.relay, parts, statements, of_part, entries, rest[lo:hi - 1], true);
      for n in lo .. hi - 1 loop
        if tried[n - lo + 1] is not null then
          whys[rest[n]] := tried[n - lo + 1];
          if whys[rest[n]] ->> 'sqlstate' = '55P03' then
            locked := locked || rest[n];
          else
            left_now := left_now || rest[n];
          end if;
        end if;
      end loop;
    end loop;
    -- 3. Rows that needed others first; rows that only fit together (two that swap a unique value), which the same
    -- constraint refuses one by one; and so on, as long as that helps. What is locked was waited for.
    loop
      left_before := array(select l from unnest(left_now) l order by l);
      tried := outboxd.try_alone(c.relay, parts, statements, of_part, entries, left_before, true);
      left_now := '{}';
      for n in 1 .. cardinality(left_before) loop
        if tried[n] is not null then
          left_now := left_now || left_before[n];
          whys[left_before[n]] := tried[n];
        end if;
      end loop;
      for together in
        select array_agg(l order by l) from unnest(left_now) l where whys[l] ->> 'sqlstate' in ('23503', '23505', '23P01', '23001')
         group by whys[l] ->> 'constraint' having count(*) > 1
      loop
        if outboxd.try_entries(c.relay, parts, of_part, entries, together) is null then
          left_now := array(select l from unnest(left_now) l where l <> all (together) order by l);
        end if;
      end loop;
      exit when left_now = left_before;
    end loop;
    raise exception using errcode = 'OB000';
  exception
    when sqlstate 'OB015' then  -- before the next one, which stands for all of its class
      get stacked diagnostics crowded = table_name;
      return outboxd.refused(c, 1, crowded, '55P03', null, null, null, null, null, null);
    when sqlstate 'OB000' then
      null;  -- all of it was a trial
  end;
  left_now := array(select l from unnest(left_now || locked) l order by l);
  return outboxd.answer('isolated', c, json_build_object('refused', (
    select coalesce(json_agg(json_build_object('part', of_part[l], 'pos', of_pos[l], 'why', whys[l],
                                               'relative', outboxd.held_relative(c.relay, parts, of_part, of_pos, entries, left_now, l, whys[l])) order by l), '[]')
      from unnest(left_now) l)));
end
$$;

revoke all on all functions in schema outboxd from public;
