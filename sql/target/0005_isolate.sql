-- Gear 3: which rows of a refused batch does the target refuse?
--
-- One request, one transaction, and in the end nothing has changed: parts of the batch are applied by the same
-- function that applies a batch, in halves until single rows are left, and all of it is taken back. What is
-- found here the relay first records on the source; only then it sends the batch without those rows.

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

-- Apply some entries; null, or why they are refused. `header` is that of the batch whose number comes next.
create or replace function outboxd.try_entries(relay_name text, parts text[], of_part int[], entries text[], chosen int[]) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  doc    text[] := array[''];
  said   json;
  g      record;
  header json := (select json_build_object('relay', k.relay, 'epoch', k.epoch, 'batch_no', k.batch_no + 1, 'digest', '', 'cursor', k.cursor::json)
                    from outboxd.cursor k where k.relay = relay_name);
begin
  for g in
    select of_part[c] as part, string_agg(entries[c], ',' order by n) as rows
      from unnest(chosen) with ordinality u(c, n) group by 1 order by 1
  loop
    doc := doc || parts[g.part] || case when parts[g.part]::json ->> 'op' = 'truncate' then g.rows else '[' || g.rows || ']' end;
  end loop;
  said := outboxd.apply(header, doc);
  return case when said ->> 'answer' = 'applied' then null else coalesce(said -> 'more', '{}') end;
end
$$;

-- The row a refused one refers to, when that is held or refused itself: {"table", "key"} or {"table", "part", "pos"}.
-- A foreign key of another table speaks of the row that still refers to the refused one: its table alone is named.
create or replace function outboxd.held_relative(relay_name text, parts text[], of_part int[], of_pos int[], entries text[], refused int[], this int, why json) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  own   text := parts[of_part[this]]::json ->> 'table';
  k     record;
  match json;
begin
  select c.table_name as child, p.table_name as parent, f.conkey, f.conrelid, f.confkey, f.confrelid into k
    from pg_constraint f
    join outboxd.mirror c on to_regclass(format('%I.%I', c.target_schema, c.target_table)) = f.conrelid
    join outboxd.mirror p on to_regclass(format('%I.%I', p.target_schema, p.target_table)) = f.confrelid
   where f.contype = 'f' and f.conname = why ->> 'constraint' and own in (c.table_name, p.table_name)
   order by (c.table_name = own) desc limit 1;
  if not found or why ->> 'sqlstate' not in ('23503', '23001') then
    return null;
  elsif k.child <> own or parts[of_part[this]]::json ->> 'op' <> 'upsert' then
    return json_build_object('table', k.child);
  end if;
  with pairs as (
    select (select attname from pg_attribute where attrelid = k.conrelid and attnum = a) as mine,
           (select attname from pg_attribute where attrelid = k.confrelid and attnum = b) as theirs
      from unnest(k.conkey, k.confkey) u(a, b)
  ), candidates as (
    select h.key::json as key, json_build_object('table', h.table_name, 'key', h.key) as found, 0 as rank
      from outboxd.held h where h.relay = relay_name and h.table_name = k.parent
    union all
    select entries[r]::json, json_build_object('table', k.parent, 'part', of_part[r], 'pos', of_pos[r]), 1
      from unnest(refused) r where r <> this and parts[of_part[r]]::json ->> 'table' = k.parent
  )
  select c.found into match from candidates c
   where (select bool_and(c.key ->> p.theirs is not distinct from entries[this]::json ->> p.mine) from pairs p)
   order by c.rank limit 1;
  return match;
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
  whys     json[] := '{}';
  why      json;
  todo     int4range[];
  r        int4range;
  lo       int;
  hi       int;
  left_now int[] := '{}';
  left_before int[];
  together int[];
begin
  stands := outboxd.turn_away(header);
  if stands.answer is not null then
    return stands.answer;
  end if;
  c := stands.c;
  select array_agg(e.part order by e.part, e.pos), array_agg(e.pos order by e.part, e.pos), array_agg(e.entry order by e.part, e.pos)
    into of_part, of_pos, entries from outboxd.entries(parts) e;
  begin
    -- 1. In halves, in the document's order: what can be applied is, what is refused by itself stays.
    todo := array[int4range(1, coalesce(cardinality(entries), 0) + 1)];
    while cardinality(todo) > 0 loop
      r := todo[cardinality(todo)];
      todo := todo[1:cardinality(todo) - 1];
      continue when isempty(r);
      lo := lower(r);
      hi := upper(r);
      why := outboxd.try_entries(c.relay, parts, of_part, entries, array(select generate_series(lo, hi - 1)));
      if why is null then
        continue;
      elsif hi - lo = 1 then
        left_now := left_now || lo;
        whys[lo] := why;
      else
        todo := todo || int4range((lo + hi) / 2, hi) || int4range(lo, (lo + hi) / 2);
      end if;
    end loop;
    -- 2. Rows that needed others first; rows that only fit together (two that swap a unique value), which the same
    -- constraint refuses one by one; and so on, as long as that helps.
    loop
      left_before := left_now;
      for i in 1 .. cardinality(left_before) loop
        why := outboxd.try_entries(c.relay, parts, of_part, entries, left_before[i:i]);
        if why is null then
          left_now := array_remove(left_now, left_before[i]);
        else
          whys[left_before[i]] := why;
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
  exception when sqlstate 'OB000' then
    null;  -- all of it was a trial
  end;
  return outboxd.answer('isolated', c, json_build_object('refused', (
    select coalesce(json_agg(json_build_object('part', of_part[l], 'pos', of_pos[l], 'why', whys[l],
                                               'relative', outboxd.held_relative(c.relay, parts, of_part, of_pos, entries, left_now, l, whys[l])) order by l), '[]')
      from unnest(left_now) l)));
end
$$;

revoke all on all functions in schema outboxd from public;
