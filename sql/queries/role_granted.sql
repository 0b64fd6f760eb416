-- Was the daemon's role set up here, and may this one grant it something? Then what a migration adds must be granted to it, too.
select true from pg_roles r join pg_namespace n on n.nspname = 'outbox'
 where r.rolname = 'outboxd' and has_schema_privilege(r.oid, n.oid, 'usage') and not r.rolsuper and pg_has_role(n.nspowner, 'usage')
