-- What both sides must have alike: columns, their types, what may be null, primary keys and foreign keys.
with t as (
  select c.oid, format('%I.%I', s.nspname, c.relname) as name
  from pg_class c join pg_namespace s on s.oid = c.relnamespace
  where c.relkind in ('r', 'p') and not c.relispartition and s.nspname not in ('outbox', 'outboxd', 'pg_catalog', 'information_schema')
)
select t.name, 'column', a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text
from t join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
union all
select t.name, 'key', (select string_agg(a.attname, ', ' order by k.at) from unnest(c.conkey) with ordinality k (num, at)
  join pg_attribute a on a.attrelid = t.oid and a.attnum = k.num), '', ''
from t join pg_constraint c on c.conrelid = t.oid and c.contype = 'p'
union all
select t.name, 'reference', (select string_agg(a.attname, ', ' order by k.at) from unnest(c.conkey) with ordinality k (num, at)
  join pg_attribute a on a.attrelid = t.oid and a.attnum = k.num), p.name, (select string_agg(a.attname, ', ' order by k.at)
  from unnest(c.confkey) with ordinality k (num, at) join pg_attribute a on a.attrelid = p.oid and a.attnum = k.num)
from t join pg_constraint c on c.conrelid = t.oid and c.contype = 'f' and c.conparentid = 0 join t p on p.oid = c.confrelid
order by 1, 2, 3, 4, 5
