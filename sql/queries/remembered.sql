-- Where the relay's target last stood, as far as the source was told, and by what address it was reached.
select epoch, batch_no, coalesce(place, '') from outbox.relay where relay = %(relay)s
