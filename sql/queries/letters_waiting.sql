-- Is the relay still to do something about one of these letters?
select exists (select from outbox.held h where h.id = any (%(ids)s) and h.wanted is not null)
