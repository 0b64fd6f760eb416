-- The application's database in the local stack: one table, and the role outboxd runs as.
\set password `cat /run/secrets/outboxd_password`
create role outboxd login password :'password';

create table story (
  id bigint generated always as identity primary key,
  title text not null,
  written_at timestamptz not null default now()
);
