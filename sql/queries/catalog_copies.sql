select distinct table_name, state from outboxd.copy
