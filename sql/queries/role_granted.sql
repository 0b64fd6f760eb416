-- Was the daemon's role set up here? Then what a migration adds must be granted to it, too.
select true from pg_roles where rolname = 'outboxd' and has_schema_privilege(oid, to_regnamespace('outbox'), 'usage') and not rolsuper
