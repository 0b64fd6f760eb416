-- Capture: what `outbox.watch` installs on a table, and how a change is written as JSON.
--
-- A trigger for each row. It is handed the version that the statement wrote, as it is when the trigger fires. If
-- nobody has touched that version since (xmax = 0) it still is the row, and is copied. Otherwise, and for keys that
-- are left, the row is re-read by its key: there = upsert, not there = delete. So whatever nests in a statement, each
-- change says what was true when it drew its id, and the last event of a key comes after the last change to it:
-- promises I1, I4 (docs/decisions/0013).

-- The type below any domains. (plpgsql keeps its plans for the session: where capture has to compose its SQL,
-- that is ten times quicker than functions in SQL.)
create or replace function outbox.base_type(of_type oid) returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid := of_type;
begin
  while (select t.typtype = 'd' from pg_type t where t.oid = base) loop
    base := (select t.typbasetype from pg_type t where t.oid = base);
  end loop;
  return base;
end
$$;

-- This type and all that it is made of: what a domain is of, elements, attributes.
create or replace function outbox.types_within(of_type oid) returns setof oid
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive within(type) as (
    select of_type
    union
    select part.type
      from within w join pg_type t on t.oid = w.type
     cross join lateral (
       select t.typbasetype as type where t.typtype = 'd'
       union all select t.typelem where t.typsubscript = 'array_subscript_handler'::regproc
       union all select r.rngsubtype from pg_range r where t.oid in (r.rngtypid, r.rngmultitypid)
       union all select a.atttypid from pg_attribute a where t.typtype = 'c' and a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped) part)
  select type from within
$$;

-- May code of this role's run with the rights of `whose`? What it owns nobody else alters or renames.
create or replace function outbox.is_trusted(role oid, whose name) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if role = 'pg_database_owner'::regrole then
    role := (select d.datdba from pg_database d where d.datname = current_database());
  end if;
  return exists (select from pg_roles r where r.oid = role and (r.rolsuper or r.rolname = whose));
end
$$;

-- json, jsonb, arrays and composites lose something on the way through row_to_json (JSON null, lower bounds): they
-- travel as their text, which loses nothing. So does every type that is not the system's own (16384 is the first
-- oid given to others): row_to_json would call a cast to json that its owner made, today or after `watch`, with the
-- rights of whoever watches.
create or replace function outbox.travels_as_text(of_type oid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base oid := outbox.base_type(of_type);
begin
  return (
    select t.typtype = 'c' or t.typcategory = 'A' or t.oid in ('json'::regtype, 'jsonb'::regtype, 'record'::regtype)
        or t.oid::int8 >= 16384
      from pg_type t where t.oid = base);
end
$$;

-- Names of the columns of `tbl` by their numbers, null for a dropped one. From the catalogue's cache, not by a
-- query: a transaction in REPEATABLE READ that had to wait for an ALTER TABLE writes the new table, but a query
-- shows it the old pg_attribute.
create or replace function outbox.column_names(tbl regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[];
  name  text;
begin
  for n in 1 .. 1600 loop
    name := (pg_identify_object_as_address('pg_class'::regclass, tbl, n)).object_names[3];
    exit when name is null;
    names[n] := name;
    if name = format('........pg.dropped.%s........', n) then
      -- A column may have been given such a name by its owner: then it is seen alive under it. (An old snapshot shows a
      -- dropped one alive as well, but under the name that it had.) Asked apart: a query for each column would take most of the time.
      if not exists (select from pg_attribute a where a.attrelid = tbl and a.attnum = n and a.attname = name and not a.attisdropped) then
        names[n] := null;
      end if;
    end if;
  end loop;
  return names;
end
$$;

-- Columns that decide how a table is captured. Declared immutable, which it is between two changes of the
-- table: capture calls it with a regclass constant, so the planner folds it into the cached plan, and any
-- ALTER TABLE invalidates that plan. A check on every statement for the price of none. Types by their numbers: a migration
-- may put another of the same name in a type's place, and plans of capture know the old one.
create or replace function outbox.signature(tbl regclass) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select md5(string_agg(format('%s %s %s %s', u.name, a.atttypid, a.attcollation, i.indkey), ',' order by u.n))
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
      left join pg_index i on i.indrelid = tbl and i.indisprimary and a.attnum = any (i.indkey)
     where u.name is not null);
end
$$;

create or replace function outbox.primary_key(tbl regclass) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return (
    select array_agg(names[k.attnum] order by k.n)
      from pg_index i
      cross join lateral unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) with ordinality k(attnum, n)
     where i.indrelid = tbl and i.indisprimary);
end
$$;

-- Do these columns name one row, at every moment? Not so for a DEFERRABLE key.
create or replace function outbox.is_key(tbl regclass, columns text[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  return exists (
       select from pg_index i
        cross join lateral (select array_agg(names[n]) from unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) n) k(of_index)
        where i.indrelid = tbl and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
          and k.of_index <@ columns and columns <@ k.of_index)
     and not exists (
       select from pg_attribute a where a.attrelid = tbl and names[a.attnum] = any (columns)
          and (not a.attnotnull or exists (  -- NOT NULL NOT VALID (Postgres 18): old rows may have none
                 select from pg_constraint c where c.conrelid = tbl and c.contype = 'n' and not c.convalidated and a.attnum = any (c.conkey))));
end
$$;

-- May whoever asks read all rows of this table, or of this partition by itself? Whoever makes a partition may own it, keep
-- it elsewhere, or give it policies of its own.
create or replace function outbox.may_read(rel regclass) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return has_table_privilege(rel, 'select')
     and has_schema_privilege((select c.relnamespace from pg_class c where c.oid = rel), 'usage')
     and not row_security_active(rel);
end
$$;

-- May whoever asks write to these (outbox.change and its sequences)? They are handed in by whoever calls: so the plan
-- depends on them, and a right that is revoked is noticed.
create or replace function outbox.may_write(places regclass[]) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select bool_and(case when c.relkind = 'S' then has_sequence_privilege(c.oid, 'usage') else has_table_privilege(c.oid, 'insert') end)
            from pg_class c where c.oid = any (places));
end
$$;

-- Can whoever asks still name and read the rows? Declared immutable for the same reason as the signature: a
-- key dropped, an owner changed or a policy forced while the table is watched must not fail the application.
create or replace function outbox.capturable(tbl regclass, keys text[]) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return keys <@ outbox.row_columns(tbl, null::text[], null::text[]) and outbox.may_read(tbl) and outbox.is_key(tbl, keys);
end
$$;

-- Columns of `tbl` that travel, in their order.
create or replace function outbox.row_columns(tbl regclass, include text[], exclude text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return (
    select array_agg(u.name order by u.n)
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
     where u.name is not null
       and (include is null or u.name = any (include))
       and (exclude is null or u.name <> all (exclude)));
end
$$;

-- These columns of alias `t`, as row_to_json is to have them. Text is what the type itself writes (concat does that):
-- a cast to text may be a function of the table's owner. A column too new to be seen here travels as text, which
-- any type reads. What a mapping makes of them, and its constants: see 0009.
create or replace function outbox.values_sql(tbl regclass, columns text[], mapping jsonb default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if mapping is not null then
    return concat_ws(', ', (
      select string_agg(
               format('%s as %I', case
                 when k.mask is not null then outbox.masked_sql(k.mask, u.name, a.atttypid, a.atttypmod, mapping ->> 'of')
                 when a.attnum is null or outbox.travels_as_text(a.atttypid) then format('case when t.%1$I is distinct from null then concat(t.%1$I) end', u.name)
                 else format('t.%I', u.name) end, coalesce(r.title, u.name)), ', ' order by u.n)
        from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
        left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
        left join jsonb_each_text(mapping -> 'mask') k(name, mask) on k.name = u.name
        left join jsonb_each_text(mapping -> 'rename') r(name, title) on r.name = u.name
       where u.name = any (columns)),
      (select string_agg(format('%L::text as %I', c.value, c.key), ', ' order by c.key collate "C") from jsonb_each_text(mapping -> 'constant') c));
  end if;
  return (
    select string_agg(
             case when a.attnum is null or outbox.travels_as_text(a.atttypid)
                  then format('case when t.%1$I is distinct from null then concat(t.%1$I) end as %1$I', u.name)
                  else format('t.%I', u.name) end, ', ' order by u.n)
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
     where u.name = any (columns));
end
$$;

-- SQL that makes the JSON of these columns from alias `t`.
create or replace function outbox.row_sql(tbl regclass, columns text[], mapping jsonb default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format('(select row_to_json(x.*)::text from (select %s) x)', outbox.values_sql(tbl, columns, mapping));
end
$$;

-- A row whose JSON has more bytes than this is recorded by its key alone. Postgres itself makes none above 1 GB.
create or replace function outbox.row_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 128 * 1024 * 1024;

-- A key of more bytes is recorded by a name that is made of its digest, and its row as too large. An index entry has 2,704
-- bytes at most; only what compresses well is longer as text.
create or replace function outbox.key_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 4096;

-- Each change carries the headers of its transaction.
create or replace function outbox.headers_limit() returns int
language sql immutable
set search_path = pg_catalog, pg_temp
return 16384;

create or replace function outbox.refuse_headers() returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'outbox.headers has % bytes, and % is the most: each change carries it', octet_length(current_setting('outbox.headers', true)), outbox.headers_limit()
    using errcode = 'program_limit_exceeded', hint = 'reset outbox.headers; it is for a traceparent (docs/tracing.md), not for data';
end
$$;

-- Can this text be said in UTF-8, as it travels? In some encodings not every byte has a meaning, and nobody keeps it out.
create or replace function outbox.readable(value text) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if getdatabaseencoding() <> 'UTF8' then
    perform convert_to(value, 'UTF8');
  end if;
  return true;
exception when others then
  return false;
end
$$;

-- The JSON of a key, with the bytes that mean nothing as escapes: such a row is held, and needs a name.
create or replace function outbox.readable_key(key text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp set standard_conforming_strings = on
as $$
begin
  return case when outbox.readable(key) then key else (
    select string_agg(case when outbox.readable(c.char) then c.char
                           else regexp_replace(encode(convert_to(c.char, getdatabaseencoding()), 'hex'), '(..)', '\\u00\1', 'g') end, '' order by c.n)
      from string_to_table(key, null) with ordinality c(char, n)) end;
end
$$;

-- Is it more than a key may have, in the bytes that it travels as? (No character takes more than four of them.)
create or replace function outbox.is_long(key text) returns boolean
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
begin
  return 4 * octet_length(key) > outbox.key_limit()
     and case when getdatabaseencoding() = 'UTF8' then octet_length(key) else octet_length(convert_to(key, 'UTF8')) end > outbox.key_limit();
end
$$;

-- What a key is recorded as: itself, or, where that is long, an object of the same names with its digest as each value.
-- The space behind the brace tells it from every key: nothing else here writes one. The daemon knows it by that, too.
create or replace function outbox.name_of(key text) returns text
language plpgsql immutable strict
set search_path = pg_catalog, pg_temp
as $$
begin
  if not outbox.is_long(key) then
    return key;
  end if;
  return (select format('{ %s}', string_agg(format('%s:"%s"', to_json(k), encode(sha256(convert_to(key, 'UTF8')), 'hex')), ',' order by n))
            from json_object_keys(key::json) with ordinality u(k, n));
end
$$;

-- SQL: is the key of alias `t` short enough for certain, whatever it is? From what is stored, where that says it: nothing is
-- detoasted. Null: it always is. (JSON makes six bytes of one at most.)
create or replace function outbox.short_key_sql(tbl regclass, columns text[], alias text, mapping jsonb default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
  spare int := outbox.key_limit() - 2;
  most  int;
  sized text[];
  col   text;
  base  regtype;
  k     record;
begin
  for k in
    select u.name, a.atttypid, a.atttypmod, a.attlen from unnest(columns) u(name) left join pg_attribute a on a.attrelid = tbl and names[a.attnum] = u.name
  loop
    base := outbox.base_type(k.atttypid);
    col := format('%I.%I', alias, k.name);
    spare := spare - octet_length(to_json(coalesce(mapping -> 'rename' ->> k.name, k.name))::text) - 4;
    most := case when base = any ('{bool,int2,int4,int8,oid,uuid,date,time,timestamp,timestamptz}'::regtype[]) then 40
                 when k.attlen > 0 then 400  -- a name, a label
                 when base = k.atttypid and base in ('varchar'::regtype, 'bpchar'::regtype) and k.atttypmod between 5 and 132 then 24 * (k.atttypmod - 4)
                 when base = k.atttypid and base = 'numeric'::regtype and k.atttypmod > 4 then 2100 end;
    if most <= spare then
      spare := spare - most;
    elsif base in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) then
      sized := sized || format('octet_length(%s)', col);
    elsif base = 'bytea'::regtype then
      sized := sized || format('2 * octet_length(%s)', col);
    else
      sized := sized || format('octet_length(concat(%s))', col);
    end if;
  end loop;
  return '(' || array_to_string(sized, ' + ') || ' <= ' || spare / 6 || ')';
end
$$;

-- SQL that makes what a key is recorded as from alias `t`.
create or replace function outbox.named_sql(tbl regclass, columns text[], alias text, mapping jsonb default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return format(case when outbox.short_key_sql(tbl, columns, alias, mapping) is null then '%s' else 'outbox.name_of(%s)' end,
                outbox.key_sql(tbl, columns, alias, mapping));
end
$$;

-- SQL: what is told in place of a row that is not recorded. `told`: as outbox.size_sql has it; `key`: SQL of its key, null for one that is always short.
create or replace function outbox.told_sql(told text, key text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case when key is null then told
            else format('case when outbox.is_long(%1$s) then concat(''{"key_bytes":'', octet_length(%1$s), ''}'') else %2$s end', key, told) end;

-- Which of these columns may have a text that cannot be read: of a type that does not write ASCII alone. In UTF-8 none.
create or replace function outbox.doubtful(tbl regclass, columns text[]) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if getdatabaseencoding() = 'UTF8' then
    return '{}';
  end if;
  return array(
    select u.name from unnest(outbox.column_names(tbl)) with ordinality u(name, n) left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
     where u.name = any (columns) and coalesce(outbox.base_type(a.atttypid) <> all (
             '{bool,int2,int4,int8,oid,numeric,float4,float8,uuid,date,time,timetz,timestamp,timestamptz,interval,bytea,bit,varbit,inet,cidr,macaddr,macaddr8}'::regtype[]), true)
     order by u.n);
end
$$;

-- SQL about the sizes of these columns of alias `t`, from what is stored: nothing is detoasted.
--   small   the JSON is nowhere near a limit. At most 128 kB stored, which compression may have made of 32 MB; of types
--           that may write far more than they hold (a jsonb of many 1e131071) 2 kB, and those not compressed
--   bytes   of text in the row: a lower bound of its JSON
--   stored  what the row takes on disk, about
--   told    what is recorded of a row that is not
-- A row that cannot be read is not small either: the way of large ones looks, and records its key alone.
create or replace function outbox.size_sql(
  tbl regclass, columns text[], alias text default 't', out small text, out bytes text, out stored text, out told text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  sizes  text[];  -- of every column without a fixed length
  wide   text[];  -- of those whose text may be far longer
  packed text[];
  sized  text[];  -- of those that the guard has to look at
  col    text;
  base   regtype;
  typmod int;
  reads  text := (select string_agg(format('outbox.readable(concat(%I.%I))', alias, c), ' and ') from unnest(outbox.doubtful(tbl, columns)) c);
  spare  int := 4194304;  -- what columns of bounded length may make together
  most   int;
begin
  bytes := '0';
  for col, base, typmod in
    select format('%I.%I', alias, u.name), outbox.base_type(a.atttypid), case when a.atttypid = outbox.base_type(a.atttypid) then a.atttypmod else -1 end
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
     where u.name = any (columns) and coalesce(a.attlen, -1) < 0 order by u.n
  loop
    sizes := sizes || format('pg_column_size(%s)', col);
    -- The most that JSON makes of a column of bounded length: six bytes a byte, four bytes a character.
    most := case when base in ('varchar'::regtype, 'bpchar'::regtype) and typmod > 4 and typmod < 100000 then 24 * typmod
                 when base = 'numeric'::regtype and typmod > 4 then 2100
                 when base in ('inet'::regtype, 'cidr'::regtype) then 100 end;
    if most < spare then
      spare := spare - most;
      continue;
    end if;
    sized := sized || format('pg_column_size(%s)', col);
    case
      when base in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype) then
        bytes := format('%s + coalesce(octet_length(%s), 0)::bigint', bytes, col);
      when base = 'bytea'::regtype then
        bytes := format('%s + 2 * coalesce(octet_length(%s), 0)::bigint', bytes, col);
      when base in ('json'::regtype, 'xml'::regtype, 'numeric'::regtype, 'bit'::regtype, 'varbit'::regtype) then
        null;
      else
        wide := wide || format('pg_column_size(%s)', col);
        packed := packed || format('pg_column_compression(%s)', col);
    end case;
  end loop;
  small := concat_ws(' and ', case when sized is null then 'true' end,
    '(greatest(' || array_to_string(sized, ', ') || ') > ' || 131072 / cardinality(sized) || ') is not true',
    '(greatest(' || array_to_string(wide, ', ') || ') > 2000) is not true and coalesce(' || array_to_string(packed, ', ') || ') is null', reads);  -- a function takes 100 arguments at most
  stored := coalesce((select string_agg(format('coalesce(%s, 0)::bigint', s), ' + ') from unnest(sizes) s), '0');
  told := format('concat(''{"stored_bytes":'', %s%s, ''}'')', stored,
                 case when reads is not null then format(', case when not (%s) then '',"unreadable":true'' end', reads) end);
end
$$;

-- The JSON of the row at `at` in `rel` (a table, or a partition), or null when it is too large: when making it fails, or
-- would take too much to try. The way of the few rows that are not small.
create or replace function outbox.large_row(rel regclass, at tid, row_sql text, bytes_sql text) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  made text;
begin
  execute format('select case when %s <= outbox.row_limit() then %s end from only %s t where t.ctid = $1', bytes_sql, row_sql, rel)
     into made using at;
  return case when octet_length(made) <= outbox.row_limit() and outbox.readable(made) then made end;
exception
  when program_limit_exceeded or out_of_memory then
    return null;
  when internal_error then
    if sqlerrm like 'invalid memory alloc request size%' then
      return null;
    end if;
    raise;
end
$$;

-- SQL that makes the JSON of the key from an alias. Two spellings of one key must give one text:
-- numeric loses its trailing zeros here, types that cannot be spelled in one way are refused by watch.
create or replace function outbox.key_sql(tbl regclass, columns text[], alias text, mapping jsonb default null) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[] := outbox.column_names(tbl);
begin
  if (select bool_and(a.atttypid in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype, 'uuid'::regtype))
        from pg_attribute a where a.attrelid = tbl and names[a.attnum] = any (columns)) then
    -- The same text, made more quickly: these types write nothing that JSON would have to escape.
    return (
      select format('concat(%s)', string_agg(
               format('%L, %I.%I%s', case when k.n = 1 then '{' else ',' end || to_json(coalesce(mapping -> 'rename' ->> k.name, k.name)) || ':' || q.mark, alias, k.name,
                      case when q.mark <> '' then format(', %L', q.mark) end), ', ' order by k.n) || ', ''}''')
        from unnest(columns) with ordinality k(name, n)
        join pg_attribute a on a.attrelid = tbl and names[a.attnum] = k.name
        cross join lateral (select case when a.atttypid = 'uuid'::regtype then '"' else '' end) q(mark));
  end if;
  return (
    select format(case when outbox.doubtful(tbl, columns) = '{}' then '(select row_to_json(x.*)::text from (select %s) x)'
                       else '(select outbox.readable_key(row_to_json(x.*)::text) from (select %s) x)' end, string_agg(
             case when outbox.base_type(a.atttypid) = 'numeric'::regtype
                  then format('trim_scale(%I.%I) as %I', alias, k.name, q.title)
                  when outbox.travels_as_text(a.atttypid)
                  then format('concat(%I.%I) as %I', alias, k.name, q.title)
                  when q.title <> k.name then format('%I.%I as %I', alias, k.name, q.title)
                  else format('%I.%I', alias, k.name) end, ', ' order by k.n))
      from unnest(columns) with ordinality k(name, n)
     cross join lateral (select coalesce(mapping -> 'rename' ->> k.name, k.name)) q(title)
      left join pg_attribute a on a.attrelid = tbl and names[a.attnum] = k.name);
end
$$;

-- A query for the key of a version of the row: of old, new or a parameter.
create or replace function outbox.touched_sql(version text, keys text[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return 'select ' || (select string_agg(format('%s.%I as %2$I', version, k.name), ', ' order by k.n) from unnest(keys) with ordinality k(name, n));
end
$$;

-- Is a version that a query shows, and that is not older than this transaction, its own (a savepoint's)? A transaction
-- that had its xid before its snapshot is shown later ones, too.
create or replace function outbox.is_mine(xid xid) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  top  bigint := pg_current_xact_id()::text::bigint;
  step bigint := ((xid::text::bigint - top) % 4294967296 + 6442450944) % 4294967296 - 2147483648;
begin
  return step = 0 or step > 0 and pg_xact_status((top + step)::text::xid8) = 'in progress';
exception when invalid_parameter_value then  -- frozen so long ago that its number seems to lie ahead
  return false;
end
$$;

-- SQL: is `alias` of the table a version that this transaction wrote? A touched key has no other row; but a snapshot of
-- REPEATABLE READ still shows the row that another transaction deleted before this one wrote the key again.
create or replace function outbox.mine_sql(alias text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return format('(age(%1$s.xmin) = 0 or age(%1$s.xmin) < 0 and outbox.is_mine(%1$s.xmin))', alias);

-- SQL that stands `before` the name of a table and `after` it. Of a table that is not known yet (null: the partition that
-- a trigger fires for) it is what format() makes the statement of.
create or replace function outbox.about_sql(before text, rel text, after text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case when rel is not null then concat(before, rel, after)
            else concat(replace(before, '%', '%%'), '%s', replace(after, '%', '%%')) end;

-- The statement that records the rows of the keys `touched` (a query for their columns) as they are now, in their lock.
-- They are re-read from `rel`, the table or partition that the event is of: a unique key has the columns that choose the
-- partition, so no row of such a key is anywhere else, and one that moves to another partition has another key there.
-- `large` calls what makes the JSON of a row that is not small, `shape` is SQL. A row that does not pass the filter is
-- deleted on the target, unless it is said (`was`, SQL) that it cannot have been there.
create or replace function outbox.reread_sql(
  of_table text, root regclass, rel text, keys text[], cols text[], mapping jsonb, shape text, touched text, large text default null, was text default null)
  returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  row_sql text := outbox.row_sql(root, cols, mapping);
  size    record := outbox.size_sql(root, cols, 't'::text);
  inside  text := case when mapping -> 'inside' is not null then outbox.inside_sql(mapping, 't'::text) end;
  key_sql text := outbox.named_sql(root, keys, 'k'::text, mapping);
  long    text := case when outbox.short_key_sql(root, keys, 'k'::text, mapping) is not null then outbox.key_sql(root, keys, 'k'::text, mapping) end;
  found   text := case when inside is null then format('(t.%I is not null)', keys[1]) else 'f.inside' end;
begin
  -- lateral + limit: always one index probe a key. A hash join, cached after one bulk statement, would
  -- scan the whole table for every single-row statement that follows in the session.
  return outbox.about_sql(format(
    'insert into outbox.change (table_name, op, shape, key, row, headers)'
    ' select %1$L, case %2$s when not %3$s then ''delete'' when j.made is null then ''too_large'' else ''upsert'' end,'
    ' case when j.made is not null then %4$s end, %5$s,'
    ' case when %3$s then coalesce(j.made, %6$s) end,'
    ' nullif(current_setting(''outbox.headers'', true), '''')'
    ' from (%7$s) k left join lateral (select r.*, r.tableoid, r.ctid from only ',
    of_table, case when inside is null then '' else 'when f.inside is null then ''resync''' end, found, shape,
    case when inside is null then key_sql else format('case when f.inside is null then ''{}'' else %s end', key_sql) end,
    outbox.told_sql(size.told, long), touched),
    rel, format(
    ' r where %1$s and %2$s limit 1) t on true%3$s'
    ' cross join lateral (select case when %4$s is not true%9$s then null when %5$s then %6$s else %7$s end as made offset 0) j%8$s',
    (select string_agg(format('r.%1$I = k.%1$I', c), ' and ') from unnest(keys) c), outbox.mine_sql('r'::text),
    case when inside is null then '' else format(' cross join lateral (select t.%I is not null and %s as inside offset 0) f', keys[1], inside) end,
    found, size.small, row_sql, coalesce(large, format('outbox.large_row(t.tableoid::regclass, t.ctid, %L::text, %L::text)', row_sql, size.bytes)),
    ' where f.inside is not false or ' || was, ' or outbox.is_long(' || long || ')'));
end
$$;

-- SQL: may the row's version `old` be on the target? So it may when it passes the filter, when it cannot be asked, and
-- always where the filter may have answered otherwise when that version was written.
create or replace function outbox.was_sql(mapping jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return case when (mapping -> 'lasting')::bool then format('coalesce(%s, true)', outbox.inside_sql(mapping, 'old'::text)) else 'true' end;
end
$$;

-- The statement that records the row that a trigger was handed as `new`, whose key is short, as it is there. One that does not pass the
-- filter is deleted on the target if `old` (null for an insert) may have been there.
create or replace function outbox.copy_sql(of_table text, tbl regclass, keys text[], cols text[], mapping jsonb) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  given   text := outbox.values_sql(tbl, cols, mapping);
  plain   text := (select string_agg(case when u.name is not null then format('t.%I', u.name) else 'dropped' end, ', ' order by u.n)
                     from unnest(outbox.column_names(tbl)) with ordinality u(name, n));
  handed  text := (select string_agg(format('new.%1$I as %1$I', name), ', ') from unnest(outbox.column_names(tbl)) u(name) where name is not null);
  shape   text := outbox.shape_of(of_table, outbox.projected(cols, mapping))::text;
  key_sql text := outbox.key_sql(tbl, keys, 't'::text, mapping);
  row_sql text := case when given = plain and 'new' <> all (cols) then 'row_to_json(new)::text' else 'row_to_json(x.*)::text' end;
  op      text := '''upsert''';
  more    text := case when given = plain and 'new' <> all (cols) then '' else format(' cross join lateral (select %s) x', given) end;
begin
  if mapping -> 'inside' is not null then
    op := 'case when f.inside then ''upsert'' when f.inside is null then ''resync'' else ''delete'' end';
    shape := format('case when f.inside then %s end', shape);
    key_sql := format('case when f.inside is null then ''{}'' else %s end', key_sql);
    row_sql := format('case when f.inside then %s end', row_sql);
    more := more || format(' cross join lateral (select %s as inside offset 0) f where f.inside is not false or old.%I is not null and %s',
                           outbox.inside_sql(mapping, 't'::text), keys[1], outbox.was_sql(mapping));
  end if;
  return format('insert into outbox.change (table_name, op, shape, key, row, headers)'
                ' select %L, %s, %s, %s, %s, capture.said from (select %s) t%s',
                of_table, op, shape, key_sql, row_sql, handed, more);
end
$$;

-- What this transaction recorded last, if that is of this table: its op and headers. Asked of the outbox itself, never of a
-- setting: whoever writes or truncates could give that. With the rights of the schema's owner: whoever captures need not read it.
create or replace function outbox.told(of_table text, out op text, out headers text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off
as $$
begin
  select l.op, l.headers into op, headers
    from (select c.table_name, c.op, c.headers from outbox.change c where c.xid = pg_current_xact_id() order by c.xid desc, c.id desc limit 1) l
   where l.table_name = of_table;
end
$$;

-- The statement that records that a row has gone (`was`: if that is so).
create or replace function outbox.gone_sql(of_table text, key_sql text, was text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return format('insert into outbox.change (table_name, op, key, headers) select %L, ''delete'', %s, capture.said%s', of_table, key_sql, ' where ' || was);

-- Mark a table whose rows cannot be told, once for all rows of a statement (`at` names it among those of the transaction, and
-- is the mark's headers; null: it is for no row). Nothing is lost where one is told twice, or two go by one name: whoever brings
-- the table over looks after the commit. With the rights of the schema's owner, because whoever captures may have lost its own.
-- Whoever may call it can have a table brought over anew, and no more: as by outbox.ask_copy.
create or replace function outbox.mark(of_table text, at text) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from outbox.told(of_table) l where l.op = 'resync' and l.headers = at) then
    insert into outbox.change (table_name, op, key, headers) values (of_table, 'resync', '{}', at);
  end if;
end
$$;

-- The statement that marks a table; $3 names the application's.
create or replace function outbox.resync_sql(of_table text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return format('select outbox.mark(%L::text, $3::text)', of_table);

-- The statement for an event on `rel` when that is no part of the table that has the watched one's name, else null.
create or replace function outbox.elsewhere_sql(of_table text, rel regclass) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  namesake regclass := outbox.table_named(of_table);
begin
  if namesake is null or namesake = coalesce(pg_partition_root(rel), rel) then
    return null;
  elsif exists (select from pg_trigger a join pg_trigger b on b.tgfoid = a.tgfoid and b.tgname = a.tgname
                 where a.tgrelid = namesake and b.tgrelid = rel and a.tgname = 'outbox_truncate') then
    return 'select where false';  -- a partition that was detached: no row of the watched table any more
  end if;
  return outbox.resync_sql(of_table);  -- the table was renamed and another has its name: nobody can say whose row this is
end
$$;

-- The statement that records one event of a trigger of the watched table on `root` or a partition, when the table is not
-- as it was watched: $1 is OLD, $2 NEW, and format() puts the partition in. What outbox.watched knows is handed in: an old
-- snapshot may not show that row. Declared immutable for the same reason as the signature: composing takes longer than
-- a hundred rows, so a plan does it once.
create or replace function outbox.capture_sql(
  root regclass, op text, of_table text, key_columns text[], include text[], exclude text[], mapping jsonb, places regclass[]) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  keys text[] := coalesce(key_columns, outbox.primary_key(root));
  cols text[];
begin
  if not coalesce(outbox.capturable(root, keys) and outbox.may_write(places), false) or not outbox.mapping_holds(root, include, exclude, mapping) then
    -- The key is gone (renamed, dropped), or the right to read, or to write: these rows cannot be named. Or a column that
    -- is masked is not where it was: its values must not leave. The application's statement must not fail for that, and
    -- nothing may be skipped silently: the relay stops at this mark.
    return replace(outbox.resync_sql(of_table), '%', '%%');
  elsif op = 'TRUNCATE' then
    return outbox.about_sql(format('insert into outbox.change (table_name, op, key, headers)'
      ' select %L, ''delete'', %s, nullif(current_setting(''outbox.headers'', true), '''') from ', of_table, outbox.named_sql(root, keys, 'k'::text, mapping)), null::text, ' k'::text);
  end if;
  cols := outbox.row_columns(root, include, exclude);
  return outbox.reread_sql(of_table, root, null::text, keys, cols, mapping,
    format('outbox.shape_of(%L::text, %L::text[])', of_table, outbox.projected(cols, mapping)), concat_ws(' union ',
    case when op <> 'INSERT' then outbox.touched_sql('($1)'::text, keys) end, case when op <> 'DELETE' then outbox.touched_sql('($2)'::text, keys) end), null::text, null::text);
end
$$;

-- The statement for a TRUNCATE of `rel`: of the whole table it is one change, of a partition the keys that it had. Partitions
-- of it that have a trigger of their own tell theirs themselves.
create or replace function outbox.truncate_sql(
  rel regclass, of_table text, key_columns text[], include text[], exclude text[], mapping jsonb, places regclass[]) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  root regclass := coalesce(pg_partition_root(rel), rel);
  made text := outbox.capture_sql(root, 'TRUNCATE', of_table, key_columns, include, exclude, mapping, places);
  mark text := outbox.resync_sql(of_table);
begin
  if made = replace(mark, '%', '%%') then
    return mark;
  elsif rel = root then
    return format('insert into outbox.change (table_name, op, key, headers)'
                  ' values (%L, ''truncate'', ''{}'', nullif(current_setting(''outbox.headers'', true), ''''))', of_table);
  elsif current_setting('transaction_isolation') in ('repeatable read', 'serializable') then
    return mark;  -- TRUNCATE removes rows that came after this snapshot, too
  end if;
  return coalesce((
    select string_agg(case when outbox.may_read(p.relid) then format(made, p.relid) else mark end, '; ')
      from pg_partition_tree(rel) p
     where p.isleaf and (p.relid = rel or not exists (
             select from pg_trigger a join pg_trigger b on b.tgfoid = a.tgfoid and b.tgname = a.tgname
              where a.tgrelid = rel and a.tgname = 'outbox_truncate' and b.tgrelid = p.relid and b.tgenabled = 'A'))), 'select where false');
end
$$;

-- Is `tbl` the table that was watched, and as it was then, and can it be captured so? Declared immutable for the same reason
-- as the signature.
create or replace function outbox.as_watched(tbl regclass, of_table text, signature text, keys text[], places regclass[]) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return coalesce(outbox.table_named(of_table) = tbl and outbox.signature(tbl) = signature and outbox.capturable(tbl, keys) and outbox.may_write(places), false);
end
$$;

-- Settings that decide how values of these columns are spelled, in JSON or as text: name, value, name, value. An array
-- needs what its elements do. All of them for a type that is not known to need fewer, or when nothing is said of the columns.
create or replace function outbox.spelling(tbl regclass default null, columns text[] default null) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  pins   text[] := array['datestyle', 'ISO, YMD', 'timezone', 'UTC', 'intervalstyle', 'iso_8601', 'extra_float_digits', '1', 'bytea_output', 'hex', 'lc_monetary', 'C'];
  wanted text[] := '{}';
  needs  text;
begin
  if tbl is null then
    return pins;
  end if;
  for needs in
    select distinct case
             when t.oid <> g.oid and t.oid = any ('{date,timestamp,timestamptz}'::regtype[]) then 'all'  -- an array is text
             when t.oid = any ('{bool,int2,int4,int8,oid,text,varchar,bpchar,name,uuid,json,jsonb,numeric,inet,cidr,macaddr,macaddr8,bit,varbit,date,timestamp,time,xid8,pg_lsn}'::regtype[])
               or t.typtype = 'e' then ''
             when t.oid = 'timestamptz'::regtype then 'timezone'
             when t.oid = any ('{float4,float8}'::regtype[]) then 'extra_float_digits'
             when t.oid = 'bytea'::regtype then 'bytea_output'
             else 'all' end
      from unnest(outbox.column_names(tbl)) with ordinality u(name, n)
      left join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
      left join pg_type g on g.oid = a.atttypid
      left join pg_type t on t.oid = case when g.typsubscript = 'array_subscript_handler'::regproc then g.typelem else g.oid end
     where u.name = any (columns)
  loop
    if needs = 'all' then
      return pins;
    elsif needs <> '' then
      wanted := wanted || needs || pins[array_position(pins, needs) + 1];
    end if;
  end loop;
  return wanted;
end
$$;

-- Set these (name, value, name, value) until the end of the transaction; returns what they were, to be set again.
create or replace function outbox.pin(settings text[]) returns text[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  were text[] := '{}';
begin
  for n in 1 .. cardinality(settings) by 2 loop
    were := were || settings[n] || current_setting(settings[n]);
    perform set_config(settings[n], settings[n + 1], true);
  end loop;
  return were;
end
$$;

-- Does this TRUNCATE trigger have to record anything? TRUNCATE of a partitioned table fires the triggers of its partitions as
-- well, as far as they have any: what was recorded for the table is then the last that was recorded. If something else came in
-- between, their keys are recorded as well, which changes nothing.
create or replace function outbox.truncates(of_table text, rel regclass, tg_when text) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  return tg_when = 'BEFORE'
     and (coalesce(pg_partition_root(rel), rel) = rel
          or not exists (select from outbox.told(of_table) l where l.op = 'truncate' or l.op = 'resync' and l.headers is null));
end
$$;

-- outbox.large_row for one table, as static SQL: ten times quicker. Returns how to call it.
create or replace function outbox.compose_large(watched_id int, tbl regclass, columns text[], mapping jsonb) returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  title text := 'row_' || watched_id;
begin
  execute format(
    'create or replace function outbox.%I(at tid) returns text language plpgsql set search_path = pg_catalog, pg_temp set constraint_exclusion = off as %L',
    title, format($body$
declare
  made text;
begin
  select case when %s <= outbox.row_limit() then %s end into made from only %s t where t.ctid = $1;
  return case when octet_length(made) <= outbox.row_limit()%s then made end;
exception
  when program_limit_exceeded or out_of_memory then
    return null;
  when internal_error then
    if sqlerrm like 'invalid memory alloc request size%%' then
      return null;
    end if;
    raise;
end
$body$, (outbox.size_sql(tbl, columns, 't'::text)).bytes, outbox.row_sql(tbl, columns, mapping), tbl,
    case when outbox.doubtful(tbl, columns) <> '{}' then ' and outbox.readable(made)' end));
  perform outbox.close_function(format('outbox.%I(tid)', title)::regprocedure, '{}'::name[]);
  return format('outbox.%I(t.ctid)', title);
end
$$;

-- A function made for one table belongs to whoever watches it last (who can read it now), and besides these nobody may call
-- it: not whoever default privileges gave it to, nor whoever could once.
create or replace function outbox.close_function(routine regprocedure, callers name[]) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  other name;
begin
  execute format('alter function %s owner to %I', routine, current_user);
  execute format('revoke all on function %s from public', routine);
  for other in select distinct r.rolname from pg_proc p, aclexplode(p.proacl) a join pg_roles r on r.oid = a.grantee
                where p.oid = routine and a.grantee <> p.proowner
  loop
    execute format('revoke all on function %s from %I cascade', routine, other);
  end loop;
  foreach other in array callers loop
    execute format('grant execute on function %s to %I', routine, other);
  end loop;
end
$$;

-- A template with its places, @name@, filled in, in one go: what is put in is not looked at again.
create or replace function outbox.filled(template text, places jsonb) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return (select string_agg(case when u.n % 2 = 1 then u.part else places ->> u.part end, '' order by u.n)
          from unnest(string_to_array(template, '@')) with ordinality u(part, n));

-- The parts of a capture function that read the table. Of a plain table they are static; of a partitioned one they name the
-- partition that the trigger fires for, and are planned for each row: a plan for the tree would lock all of it.
create or replace function outbox.reading_parts(
  tbl regclass, of_table text, keys text[], cols text[], mapping jsonb, shape text, large text, was text) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  filtered bool := mapping -> 'inside' is not null;
begin
  if (select c.relkind = 'r' from pg_class c where c.oid = tbl) then
    return jsonb_build_object(
      'ours', format('tg_relid = %L::oid', tbl::oid),
      'same', format('same := exists (select from only %s v where v.ctid = new.ctid)', tbl),
      'there', format('there := exists (select from only %s r where %s and %s)', tbl,
                      (select string_agg(format('r.%1$I = old.%1$I', c), ' and ') from unnest(keys) c), outbox.mine_sql('r'::text)),
      'reread_old', outbox.reread_sql(of_table, tbl, tbl::text, keys, cols, mapping, shape, outbox.touched_sql('old'::text, keys), large, case when filtered then was end),
      'reread_new', outbox.reread_sql(of_table, tbl, tbl::text, keys, cols, mapping, shape, outbox.touched_sql('new'::text, keys), large, null::text));
  end if;
  return jsonb_build_object(
    'ours', format('pg_partition_root(tg_relid) = coalesce(pg_partition_root(%1$L::regclass), %1$L::regclass)', tbl::oid),
    'same', 'execute format(''select exists (select from only %s v where v.ctid = $1)'', tg_relid::regclass) into same using new.ctid',
    'there', format('execute format(%L, tg_relid::regclass) into there using old', outbox.about_sql(
               'select exists (select from only '::text, null::text,
               format(' r where %s and %s)', (select string_agg(format('r.%1$I = ($1).%1$I', c), ' and ') from unnest(keys) c), outbox.mine_sql('r'::text)))),
    'reread_old', format('execute format(%L, tg_relid::regclass) using old, %s', outbox.reread_sql(
               of_table, tbl, null::text, keys, cols, mapping, shape, outbox.touched_sql('($1)'::text, keys), null::text, case when filtered then '$2'::text end), was),
    'reread_new', format('execute format(%L, tg_relid::regclass) using new', outbox.reread_sql(
               of_table, tbl, null::text, keys, cols, mapping, shape, outbox.touched_sql('($1)'::text, keys), null::text, null::text)));
end
$$;

-- (Re)create the capture function of one watched table: static SQL while the table looks as it did when
-- this ran, the same SQL composed afresh when it does not. Never an error for the application.
--
-- The table is named by its number, so that the question whether it still is as it was can always be asked. No column
-- of it may stand in that question: it is parsed before it is answered.
create or replace function outbox.compose_capture(watched_id int, tbl regclass) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  w        outbox.watched;
  title    text := 'capture_' || watched_id;
  cols     text[];
  keys     text[];
  large    text;
  small    text := 'false';  -- a trigger is not handed the values of virtual columns
  was      text := 'true';
  filtered bool;
  known    text;
  body     text;
  places   text := 'array[''outbox.change''::regclass, ''outbox.change_id_seq''::regclass, ''outbox.slot''::regclass]';
begin
  select * into strict w from outbox.watched where id = watched_id;
  cols := outbox.row_columns(tbl, w.include, w.exclude);
  keys := coalesce(w.key_columns, outbox.primary_key(tbl));
  filtered := w.mapping -> 'inside' is not null;
  if (select c.relkind = 'r' from pg_class c where c.oid = tbl) then
    large := outbox.compose_large(watched_id, tbl, cols, w.mapping);
  end if;
  if not exists (select from unnest(outbox.column_names(tbl)) with ordinality u(name, n) join pg_attribute a on a.attrelid = tbl and a.attnum = u.n
                  where (u.name = any (cols) or w.mapping -> 'needs' ? u.name) and a.attgenerated = 'v') then
    small := concat_ws(' and ', (outbox.size_sql(tbl, cols, 'new'::text)).small, outbox.short_key_sql(tbl, keys, 'new'::text, w.mapping));
    if filtered then
      was := format('(new.%I is not null or %s)', keys[1], outbox.was_sql(w.mapping));
    end if;
  end if;
  known := format('%L::text, %L::text[], %L::text[], %L::text[], %L::jsonb, %s', w.table_name, w.key_columns, w.include, w.exclude, w.mapping, places);
  -- The statement for a table that was altered is made once a plan, where no snapshot is older than the lock on the table.
  body := outbox.filled($body$
<<capture>>
declare
  said  text := nullif(current_setting('outbox.headers', true), '');
  were  text[];
  sql   text;
  mark  text;
  same  boolean;
  there boolean;
  made  bigint;
begin
  if octet_length(said) > @headers_limit@ then
    perform outbox.refuse_headers();
  end if;
  if tg_op <> 'TRUNCATE' and @ours@ and outbox.as_watched(@tbl@, @name@, @signature@, @keys@, @places@) then
    if new.xmax = 0 and (@small@) and (@moved@) is not true then
      @copy@;
    elsif not (@reads@) then
      perform outbox.mark(@name@, @statement@);
    else
      if tg_op <> 'DELETE' and (@small@) and (@moved@) is not true then
        @same@;
      end if;
      if same then
        @copy@;
      else
        if tg_op = 'DELETE' or tg_op = 'UPDATE' and (@moved@) then
          @there@;
          if there then
            @reread_old@;
          else
            @gone@;
          end if;
        end if;
        if tg_op <> 'DELETE' then
          @reread_new@;
        end if;
      end if;
    end if;
    get diagnostics made = row_count;
  else
    were := outbox.pin(outbox.spelling(null::regclass, null::text[]) || '{enable_memoize,off}');  -- which before 17 has a key of each use of a column: too many
    if tg_op <> 'TRUNCATE' then
      begin
        mark := @statement@;
        sql := outbox.elsewhere_sql(@name@, tg_relid::regclass);
        if sql is null and not (@reads@) then
          sql := @resync@;
        elsif sql is null and @ours@ and current_setting('transaction_isolation') not in ('repeatable read', 'serializable') then
          sql := format(case tg_op when 'INSERT' then @inserted@ when 'UPDATE' then @updated@ else @deleted@ end, tg_relid::regclass);
        elsif sql is null then
          sql := format(@any@, tg_relid::regclass);
        end if;
        execute sql using old, new, mark;
      @refused@end;
    elsif outbox.truncates(@name@, tg_relid::regclass, tg_when) then
      execute coalesce(outbox.elsewhere_sql(@name@, tg_relid::regclass), @truncated@) using old, new, mark;
    end if;
    perform outbox.pin(were);
  end if;
  -- What is and stays outside of a filter rings no bell.
  if made is distinct from 0 and not pg_try_advisory_xact_lock_shared(1869968482, 1)
     and current_setting('outbox.knocked', true) is distinct from pg_current_xact_id()::text then
    perform outbox.knock(''::text);
  end if;
  return null;
end
$body$, outbox.reading_parts(tbl, w.table_name, keys, cols, w.mapping, outbox.shape_of(w.table_name, outbox.projected(cols, w.mapping))::text, large, was)
    || jsonb_build_object(
      'tbl', format('%L::regclass', tbl::oid), 'name', quote_literal(w.table_name) || '::text', 'signature', quote_literal(outbox.signature(tbl)) || '::text',
      'keys', format('%L::text[]', keys), 'small', small, 'places', places,
      'headers_limit', outbox.headers_limit(),
      -- Asked for each row that is read: a right that whoever captures had by a role goes without a word to any plan, and
      -- a partition may be another one's. As outbox.may_read, at a tenth of the price.
      'reads', 'has_table_privilege(tg_relid, ''select'') and has_schema_privilege(tg_table_schema, ''usage'') and not row_security_active(tg_relid)',
      'statement', format('concat_ws('' '', %L, pg_current_xact_id(), concat(tg_op, case tg_op when ''DELETE'' then old.cmax else new.cmin end))', w.table_name),
      'moved', (select string_agg(format('old.%1$I <> new.%1$I', c), ' or ') from unnest(keys) c),
      'copy', outbox.copy_sql(w.table_name, tbl, keys, cols, w.mapping),
      'gone', concat('if ' || outbox.short_key_sql(tbl, keys, 'old'::text, w.mapping) || ' is not true then '
                     || outbox.gone_sql(w.table_name, outbox.named_sql(tbl, keys, 'old'::text, w.mapping), case when filtered then was end) || '; else ',
                     outbox.gone_sql(w.table_name, outbox.key_sql(tbl, keys, 'old'::text, w.mapping), case when filtered then was end),
                     case when outbox.short_key_sql(tbl, keys, 'old'::text, w.mapping) is not null then '; end if' end),
      'inserted', format('outbox.capture_sql(%L::regclass, %L::text, %s)', tbl::oid, 'INSERT', known),
      'updated', format('outbox.capture_sql(%L::regclass, %L::text, %s)', tbl::oid, 'UPDATE', known),
      'deleted', format('outbox.capture_sql(%L::regclass, %L::text, %s)', tbl::oid, 'DELETE', known),
      'any', format('outbox.capture_sql(coalesce(pg_partition_root(tg_relid), tg_relid::regclass), tg_op, %s)', known),
      'truncated', format('outbox.truncate_sql(tg_relid::regclass, %s)', known),
      'resync', quote_literal(outbox.resync_sql(w.table_name)),
      'refused', case when w.mapping is null then '' else format(  -- altered while an old snapshot shows it as it was
        'exception when syntax_error_or_access_rule_violation then execute %L using old, new, mark; ', outbox.resync_sql(w.table_name)) end));
  -- row_security = off: a policy must raise an error here, never hide a row. constraint_exclusion = off: the planner would
  -- compute the table's constraints, which are its owner's code, with the rights of whoever watches. enable_seqscan = off: a plan made
  -- while the table was small must not scan it when it is large.
  execute format(
    'create or replace function outbox.%I() returns trigger language plpgsql security definer'
    ' set search_path = pg_catalog, pg_temp set row_security = off set constraint_exclusion = off set enable_seqscan = off'
    ' set plan_cache_mode = force_generic_plan%s as %L',
    title,
    (select string_agg(format(' set %s = %L', p.name, p.setting), '') from (
       select pins.setting, lag(pins.setting) over (order by n) as name, n
         from unnest(case when outbox.hashes_spelled(tbl, w.mapping) then outbox.spelling(null::regclass, null::text[]) || '{quote_all_identifiers,off}' else outbox.spelling(tbl, cols || array(select jsonb_array_elements_text(w.mapping -> 'texts'))) end) with ordinality pins(setting, n)) p
      where p.n % 2 = 0),
    body);
  -- A partition that is made or attached gets the trigger as whoever does that: the owner of the table, and of no other one.
  perform outbox.close_function(format('outbox.%I()', title)::regprocedure, array[(select pg_get_userbyid(c.relowner) from pg_class c where c.oid = tbl)]);
end
$$;
