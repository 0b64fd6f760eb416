-- Tables that may be verified: the number of the newest wish (0: none), of the newest to repair, and what a comparison
-- would be of now.
select w.table_name, coalesce(v.wish, 0), coalesce(v.repair, 0), outbox.aim_of(w)
  from outbox.watched w left join outbox.verification v on v.table_name = w.table_name
 where w.capture
