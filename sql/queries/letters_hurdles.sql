-- Letters that took the target too long, or that somebody there had locked, or for which it failed as if it were away, once more: so many of them, those tried least first, as
-- each costs all that is behind it a timeout.
update outbox.held h set wanted = 'retry'
  from (select l.id from outbox.held l where l.sqlstate ~ '^(08|25|40|53|55P03|57|58|XX)' and l.wanted is null order by l.attempts, l.id limit %(most)s) l
 where h.id = l.id
returning h.table_name, h.key
