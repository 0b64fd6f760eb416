-- What the outbox has above an id, by table, and the age of the oldest in seconds.
select table_name, count(*), extract(epoch from clock_timestamp() - min(created_at))::float8
  from outbox.change
 where id > %(above)s
 group by table_name
 order by table_name
