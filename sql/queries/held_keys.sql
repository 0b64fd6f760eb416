-- Keys that have letters.
select distinct table_name, key from outbox.held
