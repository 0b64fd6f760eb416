-- The application: a story every second, so that there is something to see.
insert into story (title) values ('written at ' || clock_timestamp()) \watch 1
