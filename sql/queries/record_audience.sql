-- What has been agreed to of a table.
insert into outbox.audience as a (table_name, owner, access, write, realtime)
values (%(table)s, %(owner)s, %(access)s, %(write)s, %(realtime)s)
on conflict on constraint audience_pkey do update
   set owner = excluded.owner, access = excluded.access, write = excluded.write, realtime = excluded.realtime
 where (a.owner, a.access, a.write, a.realtime) is distinct from (excluded.owner, excluded.access, excluded.write, excluded.realtime)
