-- Which side of outboxd this database is, or looks like: is outboxd's schema of the source here, that of the target, the
-- roles of a Supabase project? And which database is it, of which server?
select to_regnamespace('outbox') is not null as source, to_regnamespace('outboxd') is not null as target,
       (select count(*) from pg_roles where rolname in ('anon', 'authenticated', 'service_role')) = 3 and to_regnamespace('auth') is not null as project,
       (select system_identifier from pg_control_system())::text || ' ' || current_database() as named
