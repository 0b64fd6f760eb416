-- A table of the target was renamed: whatever went to it goes to it by its name of now.
select outboxd.map(%(called)s::regclass, m.table_name, m.key_columns)
  from outboxd.mirror m where format('%%I.%%I', m.target_schema, m.target_table) = %(was)s
