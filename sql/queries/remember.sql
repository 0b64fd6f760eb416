-- Not flushed: nobody should wait for a note, and a crash that takes it back takes little.
select set_config('synchronous_commit', 'off', true), outbox.confirm(%(relay)s, %(epoch)s, %(batch_no)s, %(snapshot)s, %(place)s)
