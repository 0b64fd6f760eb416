-- A commit that is flushed takes every earlier one along.
begin; set local synchronous_commit = on; select pg_logical_emit_message(true, 'outboxd', ''); commit
