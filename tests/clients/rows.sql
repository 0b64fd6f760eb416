-- Rows with something in each column, and nothing in some.

insert into person (id, email, "Full Name", "bossId", mood, moods, tags, born, score, "select", worked, seen)
select
  md5('person ' || n)::uuid, 'p' || n || '@example.org', (array['Ada', 'böse Köchin', 'O''Hara, "Jo"', '(x) 100% \o/'])[1 + n % 4] || ' ' || n,
  case when n > 5 then md5('person ' || n / 4)::uuid end, (enum_range(null::mood))[nullif(n % 5, 0)],
  (enum_range(null::mood))[n % 3 : n % 4], (array['a', 'b,c', '{d}', 'e "f"', null, 'é'])[n % 4 : n % 7], date '1960-01-31' + n * 97,
  nullif(n % 7, 0) * 1234.567, n % 2 = 0, make_interval(days => n, mins => n * 7), row(date '2020-02-29' + n, n)::span
from generate_series(1, 24) n;

insert into "Story" ("authorId", "editorId", title, body, doc, during, pages, "createdAt", price, raw)
select
  md5('person ' || 1 + n % 6)::uuid, case when n % 3 > 0 then md5('person ' || 1 + n % 11)::uuid end, 'Story ' || n || (array['', ': rats', ' % _', ' "é", (x)'])[1 + n % 4],
  (array['the cat sat', 'on the mats, walking', null, 'fat rats & cats!'])[1 + n % 4],
  case when n % 6 > 0 then jsonb_build_object('k', n % 5, 'a', jsonb_build_array(n, 'x', null), 'deep', jsonb_build_object('é "k"', n % 3 = 0)) end,
  tstzrange('2024-01-01'::timestamptz + n * interval '7 h', '2024-01-01'::timestamptz + n * interval '19 h', (array['[)', '(]', '[]', '()'])[1 + n % 4]),
  case when n % 9 > 0 then int4range(n % 20, n % 20 + n % 6) end, '2023-12-30 23:59:59.999999+02'::timestamptz + n * interval '11:11:11.000001',
  (array[0.1, 1e300, 'NaN', '-Infinity', -0.0, null])[1 + n % 6], decode(md5(n::text), 'hex')
from generate_series(1, 60) n;

insert into chapter select s, n, 'Chapter ' || n, nullif((s * 7 + n) % 9, 0) from generate_series(1, 60) s, generate_series(1, 4) n where (s + n) % 3 > 0;
insert into scene
select story, no, n, (select "authorId" from "Story" where id = story), ('10.' || story || '.' || no || '.0/24')::inet, make_time(n, no, story % 60)
from chapter, generate_series(1, 2) n where (story + n) % 2 = 0;
insert into "étiquette" select n, 'nom ' || n, nullif(n / 3, 0) from generate_series(1, 9) n;
insert into "Story_étiquette" select s, n, timestamp '2024-03-31 02:30' + s * interval '1 s' from generate_series(1, 60) s, generate_series(1, 9) n where s % (n + 1) = 0;
insert into profile select id, nullif('about ' || email, 'about p3@example.org'), '{"b": 1,  "a": [1.0, 2]}' from person where email < 'p2@';
insert into reading select id, date '2023-12-20' + n, n * 3 from person, generate_series(1, 20) n where (length(email) + n) % 4 = 0;
insert into ledger select n, md5('person ' || 1 + n % 8)::uuid, n * 3.5 from generate_series(1, 20) n;
insert into contact select n, md5('person ' || 1 + n % 5)::uuid, '+49 ' || n, 'note ' || n from generate_series(1, 20) n;
insert into badge select row_number() over (order by id), id from person where mood = 'ok';
