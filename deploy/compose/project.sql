-- Passwords for the two roles of sql/demo/supabase_roles.sql that log in; the rest of a project is made there.
\set authenticator `cat /run/secrets/authenticator_password`
\set owner `cat /run/secrets/owner_password`
alter role authenticator password :'authenticator';
alter role supabase_owner password :'owner';
