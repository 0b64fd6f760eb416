-- The door: one function, one document, one transaction.

-- What the relay must know of the target: its tables, keys and foreign keys; for `check`, also what is
-- wrong with them.
create or replace function outboxd.describe() returns json
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with mirrors as (
    select m.*, outboxd.place_of(m) as oid from outboxd.mirror m
  )
  select json_build_object(
    'version', current_setting('server_version_num')::int,
    'migration', (select max(version) from outboxd.migration),
    'role', current_user,
    'tables', (select coalesce(json_agg(json_build_object(
        'table', m.table_name,
        'target', format('%I.%I', m.target_schema, m.target_table),
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
        'columns', (select json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
                                                      'required', a.attnotnull and not a.atthasdef and a.attidentity = '',
                                                      'nullable', not a.attnotnull and a.attgenerated = '') order by a.attnum)
                      from pg_attribute a where a.attrelid = m.oid and a.attnum > 0 and not a.attisdropped),
        'missing_grants', (select coalesce(json_agg(p), '[]') from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
                            where m.oid is not null and not has_table_privilege(m.oid, p)),
        'missing_usage', (select k.relnamespace::regnamespace from pg_class k where k.oid = m.oid and not has_schema_privilege(k.relnamespace, 'usage')),
        'hides_rows', (select c.relrowsecurity and not r.rolsuper and not r.rolbypassrls
                              and (c.relforcerowsecurity or not pg_has_role(c.relowner, 'usage'))
                         from pg_class c, pg_roles r where c.oid = m.oid and r.rolname = current_user),
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
  return outboxd.answer('claimed', c, (outboxd.describe()::jsonb || jsonb_build_object('held', outboxd.held_keys(relay_name), 'copies', outboxd.copies(relay_name), 'verifications', outboxd.verifications(relay_name), 'heartbeat', outboxd.last_heartbeat(relay_name)))::json);
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
  return outboxd.answer('cursor', c, json_build_object('held', outboxd.held_keys(relay_name), 'copies', outboxd.copies(relay_name), 'verifications', outboxd.verifications(relay_name), 'heartbeat', outboxd.last_heartbeat(relay_name)));
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
    when 'apply' then outboxd.apply(header, parts)
    when 'isolate' then outboxd.isolate(header, parts)
    when 'claim' then outboxd.claim(header ->> 'relay', (header ->> 'epoch_above')::bigint)
    when 'rebase' then outboxd.rebase(header)
    when 'cursor' then outboxd.ask(header ->> 'relay')
    when 'describe' then outboxd.answer('described', null, outboxd.describe())
    when 'extra' then outboxd.look_for_extra(header ->> 'relay', header ->> 'table', header ->> 'place')
    when 'keys' then outboxd.answer('keys', null, outboxd.keys_after(header ->> 'table', (header ->> 'after')::json, (header ->> 'most')::int)) end;
end
$$;

revoke all on all functions in schema outboxd from public;
