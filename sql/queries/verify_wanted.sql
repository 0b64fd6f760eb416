-- Tables that may be verified: the number of the newest wish (0: none), of the newest to repair, and what a comparison
-- would be of now.
select a.table_name, coalesce(v.wish, 0), coalesce(v.repair, 0), a.aim
  from outbox.aims(null::text[]) a left join outbox.verification v on v.table_name = a.table_name
