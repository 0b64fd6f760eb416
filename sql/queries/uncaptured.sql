-- Captured tables whose changes are not captured now, and why: triggers that are missing, asleep, or do not fire always.
select table_name, because from outbox.uncaptured()
