-- What goes with schema outboxd: mapped tables, relays whose cursor is kept here, keys that are held.
select (select coalesce(array_agg(m.table_name order by m.table_name), '{}') from outboxd.mirror m),
       (select count(*) from outboxd.cursor), (select count(*) from outboxd.held)
