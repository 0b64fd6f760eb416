-- Of these keys those that no row of a captured table has.
select named from outbox.copy_of(%(table)s::text, 'missing'::text, %(keys)s::text[], 0, 0::bigint, 0::bigint)
