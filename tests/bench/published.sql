-- W12: what a published generator of load for change data capture does: 100 inserts, 100 updates and 100 deletes a commit,
-- of rows of 100 bytes. Rows lie in blocks of 100; each commit takes a number, and writes three blocks by it: a new one,
-- one that is 100 commits old, and the oldest. So however many write at once, none waits for another's rows.

create table "Item" ("id" bigint primary key, "body" text not null, "updatedAt" timestamptz not null);

create function bench.body(word text, n bigint) returns text language sql immutable as $$
  select rpad(word || ' by commit ' || n, 84, md5(n::text))
$$;

insert into "Item" select k, bench.body('there', k), '2026-01-01' from generate_series(0, 200 * 100 - 1) k;
analyze "Item";

create sequence bench.block minvalue 0;

-- The last block of all has a row that no other has.
create procedure bench.block(n bigint, last boolean default false) language plpgsql as $$
begin
  insert into "Item" ("id", "body", "updatedAt")
  select case when last and k = 0 then -1 else (n + 200) * 100 + k end, bench.body('made', n), clock_timestamp()
    from generate_series(0, 99) k;
  update "Item" set "body" = bench.body('changed', n), "updatedAt" = clock_timestamp()
   where "id" between (n + 100) * 100 and (n + 100) * 100 + 99;
  delete from "Item" where "id" between n * 100 and n * 100 + 99;
end
$$;

create procedure bench.w12(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    call bench.block(nextval('bench.block'));
    commit;
  end loop;
end
$$;
