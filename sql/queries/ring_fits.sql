-- Tell whoever leads that the target's tables may fit by now.
select outbox.knock('fits'::text)
