-- From where on changes wait, as far as the source was told: at most a minute's too many.
select snapshot from outbox.relay where relay = %(relay)s
