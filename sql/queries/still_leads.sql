-- Does nobody lead with a later epoch? Nobody can until this transaction ends. Where it has written nothing there is nothing to
-- prove, and to lock a row would spend a transaction id.
select case when pg_catalog.pg_current_xact_id_if_assigned() is null then true else outbox.still_leads(%(relay)s::text, %(epoch)s::bigint) end
