-- Is half of outboxd left on a side, after a `drop` by hand: its schema, or the exposed function?
select to_regnamespace(%(schema)s) is not null
    or exists (select from pg_proc where proname = 'outboxd' and prosrc like '%%outboxd.door(%%' and %(schema)s = 'outboxd')
