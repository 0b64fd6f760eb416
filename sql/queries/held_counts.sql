-- Rows that wait as dead letters, by table.
select h.table_name, count(*) from (select distinct table_name, key from outbox.held) h group by h.table_name
