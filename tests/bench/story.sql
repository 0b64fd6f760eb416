-- One transaction of a writer, for pgbench: the story of W1.
\set n random(1, 1000000)
insert into "Story" ("id", "title", "authorEmail", "isPublic", "tags", "settings", "createdAt", "updatedAt") values (gen_random_uuid(), 'The Lighthouse at the End of the Pier, part ' || :n, 'writer' || :n % 1000 || '@example.com', :n % 2 = 0, array['drama', 'harbour', 'night'], bench.settings(:n::int), clock_timestamp(), clock_timestamp());
