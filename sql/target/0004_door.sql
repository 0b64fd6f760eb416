-- The door: one function, one document, one transaction.

-- What tells one state of the mirrors from another: what of the catalogue decides whether a row is taken. Rows do not matter. By
-- the catalogue alone: what is printed of a constraint waits for whoever has its table locked.
create or replace function outboxd.structure() returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with mirrors as (
    select outboxd.place_of(m) as oid, m::text as map from outboxd.mirror m
  ), said(what) as (
    select map from mirrors
    union all select concat_ws(' ', c.oid, c.relname, c.relacl, c.relowner, c.relrowsecurity, c.relforcerowsecurity, n.nspacl)
                from mirrors m join pg_class c on c.oid = m.oid join pg_namespace n on n.oid = c.relnamespace
    union all select concat_ws(' ', a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attidentity, a.attgenerated, a.attacl, md5(d.adbin::text))
                from mirrors m join pg_attribute a on a.attrelid = m.oid and not a.attisdropped
                left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
    union all select concat_ws(' ', k.oid, k.convalidated, k.condeferrable, k.conname, k.contype, k.conrelid, k.contypid, k.conkey, k.confrelid, k.confkey, k.confupdtype, k.confdeltype, k.confmatchtype, k.conexclop, md5(k.conbin::text))
                from pg_constraint k where k.contypid <> 0 or k.conrelid in (select oid from mirrors) or k.confrelid in (select oid from mirrors)
    union all select concat_ws(' ', i.indexrelid, i.indisunique, i.indisvalid, i.indimmediate) from mirrors m join pg_index i on i.indrelid = m.oid
    union all select concat_ws(' ', e.enumtypid, e.enumlabel) from pg_enum e
    union all select concat_ws(' ', t.tgrelid, t.tgname, t.tgenabled, t.tgfoid, md5(p.prosrc), p.proacl)
                from mirrors m join pg_trigger t on t.tgrelid = m.oid and not t.tgisinternal join pg_proc p on p.oid = t.tgfoid
  )
  select md5(string_agg(md5(s.what), '' order by md5(s.what) collate "C")) from said s
$$;

-- The values of an enum type, or of what an array or a domain holds; null: it is none.
create or replace function outboxd.labels_of(of_type oid) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select array_agg(e.enumlabel::text order by e.enumsortorder)
    from pg_enum e
   where e.enumtypid = outboxd.base_type(coalesce((select nullif(t.typelem, 0) from pg_type t where t.oid = outboxd.base_type(of_type) and t.typcategory = 'A'), of_type))
$$;

-- What the relay must know of the target: its tables, keys and foreign keys; for `check`, also what is
-- wrong with them.
create or replace function outboxd.describe() returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with mirrors as (
    select m.*, outboxd.place_of(m) as oid, l.said as locked from outboxd.mirror m left join outboxd.locked() l using (table_name)
  )
  select json_build_object(
    'version', current_setting('server_version_num')::int,
    'migration', (select max(version) from outboxd.migration),
    'installed', (select extract(epoch from min(applied_at))::text from outboxd.migration),
    'role', current_user,
    'structure', outboxd.structure(),
    'tables', (select coalesce(json_agg(json_build_object(
        'table', m.table_name,
        'target', format('%I.%I', m.target_schema, m.target_table),
        'number', m.oid::bigint,
        'exists', m.oid is not null,
        'key', m.key_columns,
        'key_types', (select array_agg(a.atttypid::regtype::text order by k.n)
                        from unnest(m.key_columns) with ordinality k(name, n)
                        join pg_attribute a on a.attrelid = m.oid and a.attname = k.name),
        'key_is_unique', exists (
            select from pg_index i where i.indrelid = m.oid and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null
               and (select array_agg(a.attname::text order by a.attname::text collate "C") from pg_attribute a
                     where a.attrelid = m.oid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                   = (select array_agg(k order by k collate "C") from unnest(m.key_columns) k)),
        'columns', (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod), 'labels', outboxd.labels_of(a.atttypid),
                                                      'required', a.attnotnull and not a.atthasdef and a.attidentity = '',
                                                      'nullable', not a.attnotnull and a.attgenerated = '') order by a.attnum)
                      from pg_attribute a where a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped),
        'missing_grants', (select coalesce(json_agg(p), '[]') from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
                            where m.oid is not null and not has_table_privilege(m.oid, p)),
        'missing_usage', (select k.relnamespace::regnamespace from pg_class k where k.oid = m.oid and not has_schema_privilege(k.relnamespace, 'usage')),
        'hides_rows', (select c.relrowsecurity and not r.rolsuper and not r.rolbypassrls
                              and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))
                         from pg_class c, pg_roles r where c.oid = m.oid and r.rolname = current_user),
        'locked', m.locked,
        'row_security', (select relrowsecurity from pg_class where oid = m.oid),
        'triggers', (select coalesce(json_agg(t.tgname), '[]') from pg_trigger t
                      where t.tgrelid = m.oid and not t.tgisinternal and t.tgenabled in ('O', 'A'))
      ) order by m.table_name), '[]') from mirrors m),
    'references', (select coalesce(json_agg(json_build_object('constraint', k.conname, 'child', c.table_name, 'parent', p.table_name,
                                                    'deferrable', k.condeferrable, 'on_delete', k.confdeltype)), '[]')
                     from pg_constraint k join mirrors c on c.oid = k.conrelid join mirrors p on p.oid = k.confrelid
                    where k.contype = 'f'))
$$;

-- Become the relay's one writer: whoever claimed before is fenced from here on (promise I6). The new epoch lies
-- `above` one that the source remembers: this database may have been restored from a backup, and an old writer not.
create or replace function outboxd.claim(relay_name text, above bigint default null) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c outboxd.cursor;
begin
  insert into outboxd.cursor as k (relay, epoch) values (relay_name, coalesce(above, 0) + 1)
  on conflict (relay) do update set epoch = greatest(k.epoch, above) + 1, updated_at = now()
  returning * into c;
  return outboxd.answer('claimed', c, (outboxd.describe()::jsonb || outboxd.held_keys(relay_name) || jsonb_build_object('copies', outboxd.copies(relay_name), 'verifications', outboxd.verifications(relay_name), 'heartbeat', outboxd.last_heartbeat(relay_name)))::json);
end
$$;

-- Where the target stands, after whatever is being applied: the row lock waits behind an apply in flight.
create or replace function outboxd.ask(relay_name text) returns json
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
  c outboxd.cursor;
begin
  select * into c from outboxd.cursor where relay = relay_name for update;
  return outboxd.answer('cursor', c, (outboxd.held_keys(relay_name) || jsonb_build_object('copies', outboxd.copies(relay_name), 'verifications', outboxd.verifications(relay_name), 'heartbeat', outboxd.last_heartbeat(relay_name)))::json);
end
$$;

-- Keys of a table, spelled as its own types spell them: whoever emits may write one key as 1 and as "1". Null where the
-- table, or the type, does not take it: then it is refused with its row.
create or replace function outboxd.spelled(name text, keys json) returns json
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  m      outboxd.mirror;
  spells text;
  one    json;
  made   json[] := '{}';
begin
  m := outboxd.mirror_of(name);
  select format('select json_agg((select row_to_json(v)::text from (select %s) v) order by u.n)'
                ' from json_array_elements($1) with ordinality u(key, n) cross join lateral json_to_record(u.key) as x(%s)',
                string_agg(case when outboxd.base_type(a.atttypid) = 'numeric'::regtype then format('trim_scale(%s) as %I', c.value, c.name)
                                else format('%s as %I', c.value, c.name) end, ', ' order by k.n),
                string_agg(c.definition, ', ' order by k.n))
    into spells
    from unnest(m.key_columns) with ordinality k(name, n)
    join outboxd.columns_of(m, m.key_columns) c on c.name = k.name
    join pg_attribute a on a.attrelid = outboxd.place_of(m) and a.attname = k.name;
  begin
    execute spells into one using keys;
    return one;
  exception when others or assert_failure then
    null;  -- some of them
  end;
  for n in 0 .. json_array_length(keys) - 1 loop
    begin
      execute spells into one using json_build_array(keys -> n);
      made := made || (one -> 0);
    exception when others or assert_failure then
      made := made || 'null'::json;
    end;
  end loop;
  return to_json(made);
exception when others or assert_failure then
  return (select json_agg(null::text) from json_array_elements(keys));
end
$$;

-- The C library gives the memory of a large batch back to the system and asks for it again with the next one, page by
-- page: a sixth of what the batch costs. It stops doing so, up to twice that size, once a large piece was freed.
create or replace function outboxd.keep_memory() returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  perform octet_length(repeat(' ', 16777216));
  perform set_config('outboxd.memory_kept', 'yes', false);
end
$$;

-- Records of the document are separated by U+001E, which cannot occur inside JSON text.
create or replace function outboxd.door(document text) returns json
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD' set timezone = 'UTC' set intervalstyle = 'iso_8601' set lc_monetary = 'C'
set extra_float_digits = 1 set bytea_output = 'hex' set xmloption = content set array_nulls = on set quote_all_identifiers = off
as $$
declare
  parts  text[] := string_to_array(document, e'\x1e');
  header json := parts[1]::json;
begin
  if octet_length(document) > 100000 and current_setting('outboxd.memory_kept', true) is distinct from 'yes' then
    perform outboxd.keep_memory();
  end if;
  return case header ->> 'mode'
    when 'apply' then outboxd.apply(header, case when header -> 'singly' is null then parts else outboxd.singly(parts) end)
    when 'isolate' then outboxd.isolate(header, parts)
    when 'claim' then outboxd.claim(header ->> 'relay', (header ->> 'epoch_above')::bigint)
    when 'rebase' then outboxd.rebase(header)
    when 'cursor' then outboxd.ask(header ->> 'relay')
    when 'spell' then outboxd.answer('spelled', null, json_build_object('keys', outboxd.spelled(header ->> 'table', parts[2]::json)))
    when 'held' then outboxd.answer('held', null, outboxd.held_keys(header ->> 'relay', header -> 'after')::json)
    when 'describe' then outboxd.answer('described', null, outboxd.describe())
    when 'advise' then outboxd.answer('advised', null, outboxd.advice())
    when 'extra' then outboxd.look_for_extra(header ->> 'relay', header ->> 'table', header ->> 'place', parts[2]::json)
    when 'keys' then outboxd.answer('keys', null, outboxd.keys_after(header ->> 'relay', header ->> 'table', (header ->> 'after')::json, (header ->> 'most')::int, (header ->> 'began')::double precision)) end;
end
$$;

revoke all on all functions in schema outboxd from public;
