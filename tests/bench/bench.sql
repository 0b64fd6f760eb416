-- What the application of the bench does, as procedures that commit as often as it would. The same for every system.
-- Rows are those of the example application: a story is 8 columns, about 300 bytes.

create table "Wide" (
  "id" bigint primary key, "a" text, "b" text, "c" text, "d" text, "e" text, "f" text, "g" text, "h" text, "i" text, "j" text,
  "k" int, "l" int, "m" bigint, "n" numeric(12, 3), "o" boolean, "p" timestamptz, "q" uuid, "r" jsonb, "s" text[]
);

create schema bench;

create function bench.settings(n int) returns jsonb language sql immutable as $$
  select jsonb_build_object('voice', 'alto', 'seed', n, 'style', '{"palette": "dusk", "grain": 0.25}'::jsonb, 'notes', 'a slow pan across the harbour')
$$;

-- The thousand rows that W2 keeps changing; they are everybody's warm-up, too.
create function bench.hot(n int) returns uuid language sql immutable as $$ select md5('hot ' || n)::uuid $$;

create procedure bench.story(of_id uuid, n int) language plpgsql as $$
begin
  insert into "Story" ("id", "title", "authorEmail", "isPublic", "tags", "settings", "createdAt", "updatedAt")
  values (of_id, 'The Lighthouse at the End of the Pier, part ' || n, 'writer' || n % 1000 || '@example.com', n % 2 = 0,
          array['drama', 'harbour', 'night'], bench.settings(n), clock_timestamp(), clock_timestamp());
end
$$;

create procedure bench.warm(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    call bench.story(bench.hot(i), i);
    commit;
  end loop;
end
$$;

-- W1: each row a transaction.
create procedure bench.w1(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    call bench.story(gen_random_uuid(), i);
    commit;
  end loop;
end
$$;

-- W2: each update a transaction, over a thousand rows.
create procedure bench.w2(n int) language plpgsql as $$
declare
  chosen uuid;
begin
  for i in 1 .. n loop
    chosen := bench.hot(1 + (random() * 999)::int);
    update "Story" set "title" = 'Edited for the ' || i || 'th time, and not for the last', "updatedAt" = clock_timestamp()
     where "id" = chosen;
    commit;
  end loop;
end
$$;

-- W3: one parent, three children, one update of the parent. Whoever sees a parent of 'w3' that is not public, or has
-- other than three children, sees half of a transaction.
create procedure bench.family(of_id uuid, n int) language plpgsql as $$
begin
  insert into "Story" ("id", "title", "authorEmail", "isPublic", "tags", "settings", "createdAt", "updatedAt")
  values (of_id, 'A Family of Four, part ' || n, 'w3', false, array['drama'], bench.settings(n), clock_timestamp(), clock_timestamp());
  for position in 0 .. 2 loop
    insert into "Scenario" ("id", "storyId", "position", "summary", "updatedAt")
    values ('scn_' || position || '_' || of_id, of_id, position, 'a scene at the harbour, seen from the pier', clock_timestamp());
  end loop;
  update "Story" set "isPublic" = true, "updatedAt" = clock_timestamp() where "id" = of_id;
end
$$;

create procedure bench.w3(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    call bench.family(gen_random_uuid(), i);
    commit;
  end loop;
end
$$;

-- W6: many rows, quickly there: twenty a transaction.
create procedure bench.w6(n int) language plpgsql as $$
begin
  for i in 1 .. n / 20 loop
    insert into "Story" ("id", "title", "authorEmail", "isPublic", "tags", "settings", "createdAt", "updatedAt")
    select gen_random_uuid(), 'The Lighthouse at the End of the Pier, part ' || k, 'writer' || k % 1000 || '@example.com', k % 2 = 0,
           array['drama', 'harbour', 'night'], bench.settings(k), clock_timestamp(), clock_timestamp()
      from generate_series(1, 20) k;
    commit;
  end loop;
end
$$;

-- W8: 20 columns, about 4 kB.
create procedure bench.wide(of_id bigint, n int) language plpgsql as $$
declare
  part text := repeat(md5(n::text), 12);
begin
  insert into "Wide" values (of_id, part, part, part, part, part, part, part, part, part, part,
    n, n * 2, n * 3::bigint, n * 0.125, n % 2 = 0, clock_timestamp(), gen_random_uuid(), bench.settings(n), array['drama', 'night']);
end
$$;

create sequence bench.wide_id;

create procedure bench.w8(n int) language plpgsql as $$
begin
  for i in 1 .. n loop
    call bench.wide(nextval('bench.wide_id'), i);
    commit;
  end loop;
end
$$;
