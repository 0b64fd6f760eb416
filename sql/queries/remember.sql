-- Not flushed: nobody should wait for a note, and a crash that takes it back takes little.
select set_config('synchronous_commit', 'off', true), outbox.confirm(%(relay)s::text, %(epoch)s::bigint, %(batch_no)s::bigint, %(snapshot)s::text, %(place)s::text)
