-- Who leads: an advisory lock whose number stands in a table that nobody but the daemon's role and the owner may write.
--
-- An advisory lock belongs to nobody: any role that may connect can hold it. Its number cannot be hidden (pg_locks shows
-- it), so it is changed as soon as somebody holds it who may not lead. (The table: 0001; docs/decisions/0032.)

-- May sessions of this role lead? As the role itself, or as one that it is a member of.
create or replace function outbox.may_lead(role oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_class c cross join lateral aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a
     where c.oid = 'outbox.leadership'::regclass and a.privilege_type = 'UPDATE'
       and (a.grantee = 0 or pg_has_role(may_lead.role, a.grantee, 'member')))
$$;

-- Locks of outboxd's that are held, or waited for, by somebody who may not lead.
--   lead   the leader's; until a daemon tries to lead, which changes its number
--   ring   K, so that no writer gets it: every commit of a watched table notifies
--   wake   K, so that the relay does not get it: it polls. A writer holds it as well, and what it has written to of outboxd's, too
--   other  a number of before, or one that nobody asks for: nothing comes of it
create or replace function outbox.strangers() returns table (what text, who text, remedy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with locks as materialized (
    select l.* from pg_locks l
     where (l.locktype = 'relation' and l.granted and l.mode = 'RowExclusiveLock'
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and l.relation in (select c.oid from pg_class c where c.relnamespace = 'outbox'::regnamespace and c.relkind in ('r', 'p')))
        or (l.locktype = 'advisory' and l.objsubid = 2 and l.classid in (1869968482, 1869968483, 1869968484)
            and l.database = (select d.oid from pg_database d where d.datname = current_database()))
  ), judged as (
    select case when l.classid = 1869968483 and l.granted and l.objid = (select k.key from outbox.leadership k)::oid then 'lead'
                when l.classid <> 1869968482 or l.objid <> 1 then 'other'
                when l.mode = 'ExclusiveLock' then 'ring'
                when not exists (select from locks x where x.locktype = 'relation' and x.virtualtransaction = l.virtualtransaction) then 'wake' end as what,
           l.pid, l.virtualtransaction
      from locks l left join pg_stat_activity a on a.pid = l.pid
     where l.locktype = 'advisory' and (l.pid is null or a.pid is not null and not outbox.may_lead(a.usesysid)))  -- one that has just come is judged at the next look
  select j.what, n.who, n.remedy
    from (select distinct on (j.pid, j.virtualtransaction) j.* from judged j where j.what is not null
           order by j.pid, j.virtualtransaction, array_position('{lead,ring,wake,other}', j.what)) j
   cross join lateral outbox.session_named(j.pid, j.virtualtransaction) n
   order by array_position('{lead,ring,wake,other}', j.what), j.pid
   limit 20
$$;

-- Take the lead if it is free, for as long as this session lasts; when a stranger holds it, under another number.
--
-- At most one leads: who takes a number has it first and writes the row then, who changes it has the row first and looks at
-- who holds it then. Whichever has the row first, the other one sees what it did, and steps back.
-- The new number is held before anybody can read it.
create or replace function outbox.lead(out leads boolean, out key int, out channel text, out who text, out remedy text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
  select k.key, k.channel into strict lead.key, lead.channel from outbox.leadership k;
  if pg_try_advisory_lock(1869968483, lead.key) then
    update outbox.leadership k set since = clock_timestamp() where k.key = lead.key;
    leads := found;
    if not leads then
      perform pg_advisory_unlock(1869968483, lead.key);
    end if;
    return;
  end if;
  leads := false;
  if not exists (select from outbox.strangers() s where s.what = 'lead') then
    return;
  end if;
  perform from outbox.leadership for update;
  perform pg_stat_clear_snapshot();  -- a daemon that has come since must not pass for a stranger, nor for one that had its pid
  select s.who, s.remedy into lead.who, lead.remedy from outbox.strangers() s where s.what = 'lead' limit 1;
  if found then
    loop
      lead.key := floor(random() * 2147483648);
      exit when pg_try_advisory_lock(1869968483, lead.key);
    end loop;
    update outbox.leadership k set key = lead.key, since = clock_timestamp();
    leads := true;
  end if;
end
$$;

revoke all on all functions in schema outbox from public;
