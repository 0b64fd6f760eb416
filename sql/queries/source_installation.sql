-- Which installation of schema outbox this is.
select min(i.id::text) from outbox.installation i
