-- Of these tables: can the rows be captured and read as the table is now (null: yes), which columns travel, and by which of
-- them, as the target calls them, are the rows told apart?
select f.table_name, f.unfit, f.columns,
       array(select coalesce(w.rename ->> k.name, k.name)
               from unnest(coalesce(w.key_columns, outbox.primary_key(outbox.table_named(w.table_name)))) with ordinality k(name, n) order by k.n)
  from outbox.fit_of(%(tables)s::text[]) f join outbox.watched w on w.table_name = f.table_name
