-- A bank, the same on both sides. `version` counts what happened to a row: each change on the source raises it by one.
-- The foreign key is deferrable because a mirror's must be.

create table checking (
  id      int primary key,
  balance bigint not null,
  version bigint not null default 1
);

create table savings (
  id      int primary key,
  balance bigint not null,
  version bigint not null default 1
);

-- Numbers in the order in which they were appended.
create table list (
  key     int primary key,
  numbers bigint[] not null,
  version bigint not null default 1
);

create table receipt (
  id      bigint primary key,
  owner   int not null,
  account int not null references checking (id) deferrable initially immediate,
  amount  bigint not null,
  memo    text not null,
  version bigint not null default 1
);

create index receipt_owner on receipt (owner);
