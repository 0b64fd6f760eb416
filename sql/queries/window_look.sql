-- The window after one that was read to its end, and its changes: what a relay does that is up to date. Prepared, so with $.
select snapshot, in_recovery, started_us, ceiling, up_to_id, installation, flushed, opened_us, lsn,
       xids, ids, tables, ops, shapes, keys, rows, sizes, unflushed, created
  from outbox.look($1, $2, $3, $4, $5, $6, $7)
