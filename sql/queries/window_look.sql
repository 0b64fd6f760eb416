-- The window after one that was read to its end, and its changes: what a relay does that is up to date. Prepared, so with $.
select snapshot, in_recovery, started_us, ceiling, up_to_id, installation, flushed, opened_us, lsn,
       xids, ids, tables, ops, shapes, keys, rows, sizes, unflushed, created
  from outbox.look($1::bigint, $2::xid8[], $3::xid8[], $4::bigint, $5::int, $6::bigint, $7::bigint)
