-- Who may use what of schema outbox: its owner everything, others what they were meant to have.
--
-- Default privileges (`alter default privileges ... grant ... to app`) give away whatever is made, and nobody notices: copies of
-- tables that app may not read, the key of `hash`, the right to forge or to empty. So setup takes back what is not meant
-- (close.sql), whatever is made for one table is closed when it is made (outbox.close_function), and `outboxd check` names the rest.

-- All that somebody other than an object's owner was given, one line each object and grantee (null: everybody).
create or replace function outbox.grants()
returns table (kind text, object text, owner oid, grantee name, rights text[], routine regprocedure)
language sql stable
set search_path = pg_catalog, pg_temp set quote_all_identifiers = off
as $$
  with objects as (
    select 'schema' as kind, quote_ident(n.nspname) as object, n.nspowner as owner, coalesce(n.nspacl, acldefault('n', n.nspowner)) as acl, 0::oid as routine
      from pg_namespace n where n.nspname = 'outbox'
    union all
    select case c.relkind when 'S' then 'sequence' else 'table' end, format('outbox.%I', c.relname), c.relowner,
           coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)), 0
      from pg_class c where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
    union all
    select 'table', format('outbox.%I', c.relname), c.relowner, a.attacl, 0
      from pg_attribute a join pg_class c on c.oid = a.attrelid where c.relnamespace = 'outbox'::regnamespace and a.attacl is not null and not a.attisdropped
    union all
    select 'routine', format('outbox.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner,
           coalesce(p.proacl, acldefault('f', p.proowner)), p.oid
      from pg_proc p where p.pronamespace = 'outbox'::regnamespace
    union all
    select 'type', format('outbox.%I', t.typname), t.typowner, t.typacl, 0
      from pg_type t where t.typnamespace = 'outbox'::regnamespace and t.typacl is not null)
  select o.kind, o.object, o.owner, r.rolname, array_agg(distinct lower(a.privilege_type)), o.routine::regprocedure
    from objects o cross join lateral aclexplode(o.acl) a left join pg_roles r on r.oid = a.grantee
   where a.grantee <> o.owner and (a.grantee = 0 or not r.rolsuper)
   group by 1, 2, 3, 4, 6
$$;

-- What a role needs that watches tables of its own, of what is here. Not: a trigger on a table of ours, which would run with the rights
-- of whoever writes there; others' rows of the outbox and their letters; what the daemon alone calls.
create or replace function outbox.watcher_needs(kind text, object text, routine regprocedure) returns text[]
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select case
           when kind = 'schema' then '{usage,create}'
           when kind = 'sequence' then '{usage,select}'
           when kind = 'routine' then case when (select p.proname from pg_proc p where p.oid = routine) = any ('{prune,confirm,still_leads,lead,heartbeat,look,copy_of}')
                                           then '{}' else '{execute}' end
           when kind = 'type' then '{usage}'
           when object = 'outbox.change' then '{insert}'
           when object in ('outbox.watched', 'outbox.shape', 'outbox.travelled', 'outbox.copy', 'outbox.verification') then '{select,insert,update,delete}'
           when object in ('outbox.held', 'outbox.mask_key', 'outbox.leadership') or starts_with(object, 'outbox.change_') then '{}'
           else '{select}' end::text[]
$$;

-- Those of them that nobody meant, and what takes each away. Meant is what
--   the owner of the schema has
--   role.sql gives to the daemon's role (which takes back the rest itself), so never the key of `hash`
--   whoever watches tables needs for that (outbox.watcher_needs; who does, owns the function that a watched table's triggers call:
--   one of such a name alone anybody makes who may create here)
--   an owner of a watched table needs where a partition is made: to use the schema, and the table's own capture
--   whoever was given outbox.emit needs: it, and to use the schema
create or replace function outbox.foreign_grants()
returns table (kind text, object text, grantee text, rights text[], fix text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with made as (
    select p.oid, p.proowner, p.proname from pg_proc p join outbox.watched w on w.capture and p.proname = 'capture_' || w.id and p.pronargs = 0
     where p.pronamespace = 'outbox'::regnamespace and exists (select from pg_trigger g where g.tgfoid = p.oid and g.tgname = 'outbox_row_' || w.id)
  ), watchers as (
    select r.rolname from made m join pg_roles r on r.oid = m.proowner
    union select r.rolname from outbox.watched w join pg_roles r on r.oid = outbox.watcher_of(w) where not w.capture
  ), owners as (
    select distinct r.rolname, format('outbox.%I()', m.proname) as object
      from made m join pg_trigger g on g.tgfoid = m.oid join pg_class c on c.oid = g.tgrelid join pg_roles r on r.oid = c.relowner
  ), given as (
    select g.kind, g.object, g.grantee, case
             when g.grantee = (select pg_get_userbyid(n.nspowner) from pg_namespace n where n.nspname = 'outbox') then '{}'
             when g.object = 'outbox.mask_key' then g.rights
             when g.grantee = 'outboxd' then '{}'
             when g.grantee in (select w.rolname from watchers w)
             then array(select r from unnest(g.rights) r where r <> all (outbox.watcher_needs(g.kind, g.object, g.routine))
                                                           and (g.grantee, g.object) not in (select o.rolname, o.object from owners o) order by r)
             when (g.grantee, g.object) in (select o.rolname, o.object from owners o) then '{}'
             when g.routine = 'outbox.emit(text, text, json, json, json)'::regprocedure and g.grantee is not null then '{}'
             when g.kind = 'schema' and g.grantee is not null
                  and (g.grantee in (select o.rolname from owners o)
                       or has_function_privilege(g.grantee, 'outbox.emit(text, text, json, json, json)', 'execute')) then array_remove(g.rights, 'usage')
             else g.rights end as rights
      from outbox.grants() g)
  select g.kind, g.object, coalesce(quote_ident(g.grantee), 'public'), g.rights,
         format('revoke %s on %s %s from %s cascade', array_to_string(g.rights, ', '), g.kind, g.object, coalesce(quote_ident(g.grantee), 'public'))
    from given g where g.rights <> '{}'
   order by 3, 1, 2
$$;

revoke all on all functions in schema outbox from public;
