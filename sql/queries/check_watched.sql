-- Every watched table as `outboxd check` looks at it: what keeps its changes from being recorded. `called`: the table that has
-- its triggers, where that has another name by now; `shadowed`: no table has its own name, and something else has.
select w.table_name,
       w.capture,
       t.tbl is not null as is_there,
       t.tbl is null and t.named is not null as shadowed,
       (select format('%I.%I', c.relnamespace::regnamespace::name, c.relname)
          from pg_trigger g join pg_class c on c.oid = g.tgrelid
         where g.tgfoid = p.oid and g.tgname = 'outbox_row_' || w.id and g.tgparentid = 0 and g.tgrelid is distinct from t.tbl
         order by g.oid limit 1) as called,
       case when t.tbl is not null and p.oid is not null
            then coalesce(outbox.unfit(t.tbl, coalesce(w.key_columns, outbox.primary_key(t.tbl)),
                                       w.include, outbox.still_left_out(t.tbl, w.exclude, w.mapping), p.proowner::regrole::name),
                          case when not outbox.mapping_holds(t.tbl, w.include, w.exclude, w.mapping)
                               then 'a column that its mapping speaks of was renamed, dropped or changed: changes are not recorded, so that nothing travels unmasked' end) end as unfit,
       coalesce(position(outbox.signature(t.tbl) in p.prosrc) > 0, true) as as_watched,
       array(select r.relid::regclass::text
               from outbox.tree(t.tbl) r(relid)
              where w.capture and r.relid is not null
                and not exists (select from pg_trigger g where g.tgrelid = r.relid and g.tgfoid = p.oid and g.tgtype & 1 = 1)) as bare,
       array(select r.relid::regclass::text
               from outbox.tree(t.tbl) r(relid)
              where w.capture and r.relid is not null and (select count(*) from pg_trigger g where g.tgrelid = r.relid and g.tgfoid = p.oid and g.tgtype & 1 = 0)
                                  < case when (select relkind from pg_class where oid = r.relid) = 'p' then 2 else 1 end) as untruncated,
       array(select g.tgrelid::regclass::text || '.' || g.tgname from pg_trigger g where g.tgfoid = p.oid and g.tgenabled <> 'A') as asleep,
       array(select g.tgrelid::regclass::text from pg_trigger g
              where g.tgfoid = p.oid and g.tgname = 'outbox_truncate' and g.tgrelid <> t.tbl
                and g.tgrelid not in (select outbox.tree(t.tbl))) as detached,
       outbox.draws(t.tbl) as draws,
       w.target,
       array(select coalesce(w.rename ->> k.name, k.name)
               from unnest(coalesce(w.key_columns, outbox.primary_key(t.tbl))) with ordinality k(name, n) order by k.n) as key,
       (select outbox.projected(outbox.row_columns(t.tbl, w.include, w.exclude), w.mapping)) as columns,
       (select json_object_agg(c.name, c.type) from outbox.projected_columns(t.tbl, w.include, w.exclude, w.mapping) c) as types,
       greatest((select c.reltuples from pg_class c where c.oid = t.tbl), 0)::bigint as rows_estimate
  from outbox.watched w
 cross join lateral (
   select n.named, (select c.oid::regclass from pg_class c where c.oid = n.named and c.relkind in ('r', 'p')) as tbl
     from (select outbox.table_named(w.table_name) as named offset 0) n offset 0) t
  left join pg_proc p on p.oid = to_regprocedure(format('outbox.capture_%s()', w.id))
 order by w.table_name
