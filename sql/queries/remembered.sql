-- Where the relay's target last stood, as far as the source was told.
select epoch, batch_no from outbox.relay where relay = %(relay)s
