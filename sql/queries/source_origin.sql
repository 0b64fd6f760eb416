-- Which database this is: what one daemon's word is told from another's by.
select (select system_identifier from pg_control_system())::text as system, current_database()::text as database
