-- A table that is out was tried again and does not fit: say why, where somebody asked, and that nobody waits for it any more.
update outbox.held h set wanted = null, attempts = h.attempts + 1, reason = %(reason)s
 where h.wanted = 'retry' and h.table_name = %(table)s and h.sqlstate = %(state)s
