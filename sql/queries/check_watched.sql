-- Every watched table as `outboxd check` looks at it: what keeps its changes from being recorded.
select w.table_name,
       w.capture,
       outbox.table_named(w.table_name) is not null as is_there,
       case when outbox.table_named(w.table_name) is not null and p.oid is not null
            then coalesce(outbox.unfit(outbox.table_named(w.table_name), coalesce(w.key_columns, outbox.primary_key(outbox.table_named(w.table_name))),
                                       w.include, outbox.still_left_out(outbox.table_named(w.table_name), w.exclude, w.mapping), p.proowner::regrole::name),
                          case when not outbox.mapping_holds(outbox.table_named(w.table_name), w.include, w.exclude, w.mapping)
                               then 'a column that its mapping speaks of was renamed, dropped or changed: changes are not recorded, so that nothing travels unmasked' end) end as unfit,
       coalesce(position(outbox.signature(outbox.table_named(w.table_name)) in p.prosrc) > 0, true) as as_watched,
       array(select r.relid::regclass::text
               from (select outbox.table_named(w.table_name) as relid union select relid from pg_partition_tree(outbox.table_named(w.table_name))) r
              where w.capture and r.relid is not null
                and not exists (select from pg_trigger t where t.tgrelid = r.relid and t.tgfoid = p.oid and t.tgtype & 1 = 1)) as bare,
       array(select r.relid::regclass::text
               from (select outbox.table_named(w.table_name) as relid union select relid from pg_partition_tree(outbox.table_named(w.table_name))) r
              where w.capture and r.relid is not null and (select count(*) from pg_trigger t where t.tgrelid = r.relid and t.tgfoid = p.oid and t.tgtype & 1 = 0)
                                  < case when (select relkind from pg_class where oid = r.relid) = 'p' then 2 else 1 end) as untruncated,
       array(select t.tgrelid::regclass::text || '.' || t.tgname from pg_trigger t where t.tgfoid = p.oid and t.tgenabled <> 'A') as asleep,
       array(select t.tgrelid::regclass::text from pg_trigger t
              where t.tgfoid = p.oid and t.tgname = 'outbox_truncate' and t.tgrelid <> outbox.table_named(w.table_name)
                and t.tgrelid not in (select relid from pg_partition_tree(outbox.table_named(w.table_name)))) as detached,
       outbox.draws(outbox.table_named(w.table_name)) as draws,
       w.target,
       array(select coalesce(w.rename ->> k.name, k.name)
               from unnest(coalesce(w.key_columns, outbox.primary_key(outbox.table_named(w.table_name)))) with ordinality k(name, n) order by k.n) as key,
       (select outbox.projected(outbox.row_columns(outbox.table_named(w.table_name), w.include, w.exclude), w.mapping)) as columns,
       (select json_object_agg(c.name, c.type) from outbox.projected_columns(outbox.table_named(w.table_name), w.include, w.exclude, w.mapping) c) as types,
       greatest((select c.reltuples from pg_class c where c.oid = outbox.table_named(w.table_name)), 0)::bigint as rows_estimate
  from outbox.watched w
  left join pg_proc p on p.pronamespace = 'outbox'::regnamespace and p.proname = 'capture_' || w.id
 order by w.table_name
