-- As outboxd.describe says it: when the target's side was first installed.
select extract(epoch from min(applied_at))::text from outboxd.migration
