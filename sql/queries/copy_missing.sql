-- Of these keys those that no row of a captured table has.
select named from outbox.copy_of(%(table)s, 'missing', %(keys)s::text[])
