-- A floor for reading in id order. Who gets a transaction id after statement 2 draws every change id after
-- statement 1: a transaction has its xid before its first id (sql/source/0001).
--
-- This spends a transaction id, because nothing that is free will do: a snapshot's xmax is one above the
-- latest *ended* transaction, so transactions at or above it may be running, with ids long drawn.
begin isolation level read committed;
select case when is_called then last_value else 0 end from outbox.change_id_seq;
select pg_current_xact_id()::text::bigint;
commit
