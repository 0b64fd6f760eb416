-- The relay that claimed its target last: whoever leads does that first.
select relay from outbox.relay order by confirmed_at desc limit 1
