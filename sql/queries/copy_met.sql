-- Which of these tables are captured by now?
select w.table_name from outbox.watched w where w.capture and w.table_name = any (%(tables)s)
