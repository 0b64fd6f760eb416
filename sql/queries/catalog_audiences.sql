-- Who may see and write tables' rows on the target, as it was last agreed to.
select table_name, owner, access, write, realtime from outbox.audience
