-- Of these tables: can the rows be captured and read as the table is now (null: yes), and which columns travel?
select table_name, unfit, columns from outbox.fit_of(%(tables)s)
