-- Does nobody lead with a later epoch? Nobody can until this transaction ends.
select outbox.still_leads(%(relay)s::text, %(epoch)s::bigint)
