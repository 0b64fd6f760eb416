-- Ask the relay for something, of these letters.
update outbox.held h set wanted = %(wanted)s where h.id = any (%(ids)s::int8[]) and h.wanted is distinct from %(wanted)s
