-- Mapping: what a watched table's rows become before they reach the outbox: names on the target, constants, masks,
-- and a filter. Composed into the capture function of each table (0002), so that nothing else ever leaves it.
--
-- `mapping` is what `outbox.watch` has made of outbox.watched's columns, and hands to capture; null: nothing is mapped.
--   rename, constant, mask   as in outbox.watched
--   inside, needs            the function that says whether a row passes the filter (0014), and the columns it is given,
--   types, texts, labels     how and as which types it is given them, which of them as text, and the labels of others' enums
--   lasting                  what the filter says of a row it has always said: it is immutable, and no other was before it
--   of                       the table's name, which `hash` takes in
--   at                       the numbers of the columns that these name, so that another of the same name is no stand-in

-- The key of `hash`: one row, random, made when first wanted. To choose it, insert it before that. Whoever may read
-- it can tell which value a hash stands for: the schema's owner alone.
create or replace function outbox.hmac_pad(key bytea, with_byte int) returns bytea
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  pad bytea := case when octet_length(key) > 64 then sha256(key) else key end;
begin
  pad := pad || decode(repeat('00', 64 - octet_length(pad)), 'hex');
  for n in 0 .. 63 loop
    pad := set_byte(pad, n, get_byte(pad, n) # with_byte);
  end loop;
  return pad;
end
$$;

create table if not exists outbox.mask_key (
  only_row  boolean primary key default true check (only_row),
  key       bytea not null check (octet_length(key) >= 16),
  inner_pad bytea not null generated always as (outbox.hmac_pad(key, 54)) stored,
  outer_pad bytea not null generated always as (outbox.hmac_pad(key, 92)) stored
);

revoke all on outbox.mask_key from public;

create or replace function outbox.make_mask_key() returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  insert into outbox.mask_key (key) values (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())) on conflict do nothing;
end
$$;

-- The mask `hash`: HMAC-SHA256 of schema.table.column=value, so that what a column shows says nothing of another one. Its own rights, because capture runs as whoever watches. Bytes as the database
-- has them: nothing to convert, so nothing that could fail. By its index: capture and copy switch sequential scans off,
-- and one that is made all the same looks so dear that it is compiled (jit), for each value: 47 ms.
create or replace function outbox.hashed(value text) returns text
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  return (select encode(sha256(k.outer_pad || sha256(k.inner_pad || convert_to(value, getdatabaseencoding()))), 'hex') from outbox.mask_key k where k.only_row);
end
$$;

-- SQL of column `name` of alias t, of table `of_table`, under a mask. NULL stays NULL. A domain's own check may refuse '***': null.
create or replace function outbox.masked_sql(mask text, name text, of_type oid, typmod int, of_table text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  base regtype := outbox.base_type(of_type);
begin
  if mask = 'hash' then
    return format('case when t.%I is distinct from null then outbox.hashed(concat(%L, %s)) end', name, format('%s.%I=', of_table, name),
      case when base = 'numeric'::regtype then format('trim_scale(t.%I)', name)  -- equal values, equal texts
           when base = 'bpchar'::regtype then format('rtrim(concat(t.%I), '' '')', name)
           when base in ('float4'::regtype, 'float8'::regtype) then format('case when t.%1$I <> 0 then t.%1$I else 0 end', name)
           else format('t.%I', name) end);
  elsif mask = 'redact' and of_type = any ('{text,varchar,bpchar,name}'::regtype[]) then
    return format('case when t.%I is distinct from null then %L end', name,
                  repeat('*', case when of_type <> all ('{text,name}'::regtype[]) and typmod between 5 and 6 then typmod - 4 else 3 end));
  end if;
  return 'null::text';
end
$$;

-- Is there a hash of a type whose text depends on settings? (JSON spells dates in one way only, their text does not.)
create or replace function outbox.hashes_spelled(tbl regclass, mapping jsonb) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return exists (select from jsonb_each_text(mapping -> 'mask') k(name, mask) join pg_attribute a on a.attrelid = tbl and a.attnum > 0 and a.attname = k.name
                  where k.mask = 'hash'
                    and a.atttypid <> all ('{bool,int2,int4,int8,numeric,text,varchar,bpchar,name,uuid}'::regtype[]));
end
$$;

-- What travels, in its order: as it is called on the target, its type there, and where it comes from (null: a constant).
create or replace function outbox.projected_columns(tbl regclass, include text[], exclude text[], mapping jsonb)
returns table (name text, type text, source text, mask text, nullable boolean)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select coalesce(r.title, u.name), case when k.mask = 'hash' then 'text' else format_type(a.atttypid, a.atttypmod) end,
           u.name, k.mask,
           not a.attnotnull or coalesce(k.mask <> 'hash' and outbox.masked_sql(k.mask, u.name, a.atttypid, a.atttypmod, mapping ->> 'of') = 'null::text', false)
      from unnest(outbox.row_columns(tbl, include, exclude)) with ordinality u(name, n)
      left join jsonb_each_text(mapping -> 'mask') k(name, mask) on k.name = u.name
      left join jsonb_each_text(mapping -> 'rename') r(name, title) on r.name = u.name
      left join pg_attribute a on a.attrelid = tbl and a.attname = u.name and a.attnum > 0 and not a.attisdropped
     order by u.n;
  return query select c.key, 'text', null::text, null::text, false from jsonb_each_text(mapping -> 'constant') c order by c.key collate "C";
end
$$;

-- Names on the target of these columns of the source, and of the constants after them.
create or replace function outbox.projected(columns text[], mapping jsonb) returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if mapping is null then
    return columns;
  end if;
  return array(select coalesce(r.title, u.name) from unnest(columns) with ordinality u(name, n)
                 left join jsonb_each_text(mapping -> 'rename') r(name, title) on r.name = u.name order by u.n)
      || array(select c from jsonb_object_keys(mapping -> 'constant') c order by c collate "C");
end
$$;

-- Does the table still have the columns that the mapping speaks of? When one was renamed its values would travel
-- unmasked under the new name. (One that was left out may be dropped: there is nothing left to leave out.)
create or replace function outbox.mapping_holds(tbl regclass, include text[], exclude text[], mapping jsonb) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  names text[];
  known text[];
begin
  if mapping is null then
    return true;
  end if;
  names := outbox.column_names(tbl);
  known := outbox.projected(outbox.row_columns(tbl, include, exclude), mapping);
  return not exists (select from jsonb_each_text(mapping -> 'at') c
                      where names[c.value::int] is distinct from c.key
                        and not (c.key = any (coalesce(exclude, '{}')) and names[c.value::int] is null))
     and (select count(distinct k) = count(*) from unnest(known) k)
     and (mapping -> 'inside' is null
          or exists (select from pg_proc c join pg_proc f on f.pronamespace = c.pronamespace and f.proowner = c.proowner
                      where c.oid = to_regprocedure(replace(mapping ->> 'inside', '.inside_', '.capture_') || '()') and 'outbox.' || f.proname = mapping ->> 'inside'
                        and mapping -> 'types' = outbox.read_types(tbl, mapping -> 'needs', pg_get_userbyid(c.proowner))));
end
$$;

-- Why these rows cannot be mapped so, or null. One sentence with the way on. (The filter has a function of its own.)
create or replace function outbox.unmappable(
  tbl regclass, keys text[], include text[], exclude text[], rename jsonb, constant jsonb, mask jsonb) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  travel text[] := outbox.row_columns(tbl, include, exclude);
  bad    text;
begin
  select string_agg(m.what, ', ') into bad
    from (values ('rename', rename), ('constant', constant), ('mask', mask)) m(what, given)
   where given is not null and case when jsonb_typeof(given) <> 'object' then true
                                    else exists (select from jsonb_each(given) e where jsonb_typeof(e.value) <> 'string') end;
  if bad is not null then
    return format('%s is to be a JSON object of texts, as in {"column": "text"}', bad);
  end if;

  select string_agg(distinct quote_ident(k), ', ') into bad
    from (select jsonb_object_keys(rename) union select jsonb_object_keys(mask)) m(k) where k <> all (travel);
  if bad is not null then
    return format('the mapping speaks of %s, and no such column of %s travels', bad, tbl);
  end if;
  select string_agg(format('%s = %s', quote_ident(m.key), m.value), ', ') into bad
    from jsonb_each_text(mask) m where m.value not in ('null', 'hash', 'redact');
  if bad is not null then
    return format('a mask is null, hash or redact, not %s', bad);
  end if;
  select string_agg(quote_ident(k), ', ') into bad from unnest(keys) k where mask ? k;
  if bad is not null then
    return format('key column %s cannot be masked: rows of the target would lose their key. Choose another unique key, or leave the mask out', bad);
  end if;
  select string_agg(quote_ident(n), ', ') into bad
    from (select value from jsonb_each_text(rename) union all select jsonb_object_keys(constant)) m(n)
   where octet_length(n) not between 1 and 63;
  if bad is not null then
    return format('%s is no name of a column: 1 to 63 bytes', bad);
  end if;
  select string_agg(distinct quote_ident(n), ', ') into bad
    from (select n from unnest(outbox.projected(travel, jsonb_strip_nulls(jsonb_build_object('rename', rename, 'constant', constant)))) n group by n having count(*) > 1) m(n);
  if bad is not null then
    return format('two columns would be called %s on the target', bad);
  end if;
  return null;
end
$$;

-- The name on the target as outbox.watched keeps it; null: the table's own.
create or replace function outbox.target_of(table_name text, target text) returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
declare
  parts text[] := parse_ident(nullif(target, ''));
begin
  if parts is null then
    return null;
  elsif cardinality(parts) <> 2 then
    raise exception 'cannot watch % as %: give the target with its schema, as in public.story', table_name, target using errcode = 'invalid_parameter_value';
  end if;
  return nullif(format('%I.%I', parts[1], parts[2]), table_name);
end
$$;

-- The mapping of a table that has been captured for some time is another one: rows of the target are as the old one
-- made them until they are copied again, and those that do not travel any more are to go.
create or replace function outbox.mapping_changed(table_name text) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  if to_regprocedure('outbox.ask_copy(text, boolean, boolean)') is not null and current_setting('outbox.copy', true) is distinct from 'off' then
    execute 'select outbox.ask_copy($1, true, true)' using table_name;
  end if;
end
$$;

-- What capture is to be handed for a table watched so, or null. Makes the filter's function and the key of `hash`. Not
-- `steady`: the target may have rows that came by another filter, so what this one says of them is no answer.
create or replace function outbox.compose_mapping(w outbox.watched, tbl regclass, steady boolean) returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  inside jsonb := '{}';
  named  text[];
begin
  if w.filter is not null then
    inside := outbox.compose_inside(w.id, tbl, w.filter) || jsonb_build_object('inside', 'outbox.inside_' || w.id);
    if not steady then
      inside := inside || '{"lasting": false}';
    end if;
  end if;
  if exists (select from jsonb_each_text(w.mask) m where m.value = 'hash') then
    if not has_function_privilege('outbox.hashed(text)', 'execute') or not has_function_privilege('outbox.make_mask_key()', 'execute') then
      raise exception 'cannot watch %: the mask hash needs a right: grant execute on function outbox.hashed(text), outbox.make_mask_key() to %', tbl, quote_ident(current_user)
        using errcode = 'invalid_parameter_value';
    end if;
    perform outbox.make_mask_key();
  end if;
  named := array(select jsonb_object_keys(w.rename) union select jsonb_object_keys(w.mask) union select unnest(w.exclude)
                 union select jsonb_array_elements_text(inside -> 'needs'));
  if cardinality(named) = 0 and w.constant is null then
    return null;
  end if;
  return jsonb_strip_nulls(jsonb_build_object(
    'rename', w.rename, 'constant', w.constant, 'mask', w.mask, 'of', case when w.mask is not null then w.table_name end,
    -- Of a column that is left out and gone its last number: that it is gone, and not renamed, is known by it.
    'at', (select jsonb_object_agg(c.name, coalesce(to_jsonb(a.attnum), w.mapping -> 'at' -> c.name))
             from unnest(named) c(name) left join pg_attribute a on a.attrelid = tbl and a.attname = c.name)) || inside);
end
$$;

-- For reading rows that are there already just as capture would record them: SQL over alias t of the table, to be
-- run as the owner of outbox.capture_<id> under the settings of outbox.spelling().
--   columns            as outbox.shape is to have them
--   key_sql, row_sql   what outbox.change.key and row would be
--   condition_sql      which rows travel; an error that names no value when the filter fails for one
create or replace function outbox.projection(watched_id int, out columns text[], out key_sql text, out row_sql text, out condition_sql text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  w    outbox.watched;
  tbl  regclass;
  cols text[];
begin
  select * into strict w from outbox.watched where id = watched_id;
  tbl := outbox.table_named(w.table_name);
  if not outbox.mapping_holds(tbl, w.include, w.exclude, w.mapping) then
    raise exception 'a column that the mapping of % speaks of was renamed, dropped or changed: run `outboxd watch %` again', w.table_name, outbox.word(w.table_name) using errcode = 'OB007';
  end if;
  cols := outbox.row_columns(tbl, w.include, w.exclude);
  columns := outbox.projected(cols, w.mapping);
  key_sql := outbox.key_sql(tbl, coalesce(w.key_columns, outbox.primary_key(tbl)), 't'::text, w.mapping);
  row_sql := outbox.row_sql(tbl, cols, w.mapping);
  condition_sql := case when w.mapping -> 'inside' is null then 'true'
                        else format('outbox.decided(%s, %L::text)', outbox.inside_sql(w.mapping, 't'::text), w.table_name) end;
end
$$;

create or replace function outbox.decided(inside boolean, of_table text) returns boolean
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  if inside is null then
    raise exception 'the filter of % fails for a row that is there: watch it again with one that does not', of_table using errcode = 'OB007';
  end if;
  return inside;
end
$$;

revoke all on all functions in schema outbox from public;
