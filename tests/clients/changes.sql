-- What happens after the rows have been copied: each kind of write, to each table.

update person set "Full Name" = 'now ' || "Full Name", mood = 'bad, worse', tags = tags || array['new', null] where score > 2000;
update person set moods = null, seen = null, worked = null where "select";
delete from person where email in ('p2@example.org', 'p20@example.org') and not exists (select from person c where c."bossId" = person.id);
insert into "Story" ("authorId", title, body, during) select "authorId", 'again: ' || left(title, 20), body || ' once more', null from "Story" where id % 10 = 0;
update "Story" set body = 'replaced', doc = doc || '{"k": "text"}', pages = 'empty', price = 3.0e-10 where id % 7 = 1;
delete from "Story" where id % 13 = 0;
update chapter set no = no + 10 where story % 11 = 5 and not exists (select from scene where scene.story = chapter.story);
update scene set took = null, place = '::1' where no = 2;
update "étiquette" set "nom long" = null where id = 1;
update "étiquette" set "nom long" = 'nom 1' where id = 2;
update "étiquette" set "nom long" = 'nom 2', parent = 9 where id = 1;
delete from "Story_étiquette" where story % 5 = 0;
update profile set links = '[]', about = about || ' …' where about is not null;
update reading set day = day + 5 where pages = 60;
update reading set day = date '2024-02-29' where pages = 3;
update ledger set amount = amount * 2;
update contact set phone = null, note = note || '!' where id % 2 = 0;
