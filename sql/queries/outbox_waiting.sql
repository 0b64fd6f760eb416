-- What the outbox has above an id, by table (heartbeats are nobody's), and the age of the oldest in seconds.
select table_name, count(*), extract(epoch from clock_timestamp() - min(created_at))::float8
  from outbox.change
 where id > %(above)s and table_name <> 'outboxd.heartbeat'
 group by table_name
 order by table_name
