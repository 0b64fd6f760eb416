-- Tables that may be verified: the number of the newest wish (0: none), whether to repair.
select w.table_name, coalesce(v.wish, 0), coalesce(v.repair, false)
  from outbox.watched w left join outbox.verification v on v.table_name = w.table_name
 where w.capture
