-- Who holds locks of outboxd's and may not lead: see outbox.strangers.
select what, who, remedy from outbox.strangers()
