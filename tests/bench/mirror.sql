-- On the target, beside the example application's mirror.

create table "Wide" (
  "id" bigint primary key, "a" text, "b" text, "c" text, "d" text, "e" text, "f" text, "g" text, "h" text, "i" text, "j" text,
  "k" int, "l" int, "m" bigint, "n" numeric, "o" boolean, "p" timestamptz, "q" uuid, "r" jsonb, "s" text[]
);

alter table "Wide" enable row level security;
grant select, insert, update, delete on "Wide" to service_role;
