-- Remove the letters that the target's cursor has passed, of keys that it does not hold (`keys`, hashed): they were
-- applied or released. Those of tables that are out wait; those that are no changes: see held_forget.sql. Of `page` letters
-- behind one; the last of these, and of how many nobody can say yet what becomes of them: they are of attempts.
with page as materialized (
  select h.id, h.table_name,
         exists (select from unnest(%(tables)s::text[], %(keys)s::text[]) k(table_name, key) where h.table_name = k.table_name and md5(h.key) = k.key) as held,
         pg_visible_in_snapshot(h.xid, %(snapshot)s::pg_snapshot)
         or exists (select from unnest(%(torn)s::xid8[], %(upto)s::int8[]) t(xid, upto) where t.xid = h.xid and h.id <= t.upto) as passed,
         h.id < 0 and h.held_at >= clock_timestamp() - interval '5 minutes' as recent
    from outbox.held h where h.id > %(after)s order by h.id limit %(page)s
), gone as (
  delete from outbox.held h
   using page p
   where h.id = p.id and p.passed and not p.held and not p.recent and p.table_name <> all (%(out)s::text[])
)
select max(id), count(*) filter (where not passed or (recent and not held)) from page
