-- The highest id that prune has removed. Asked after a page was read: TRUNCATE takes rows from older snapshots, too.
select up_to_id from outbox.pruned
