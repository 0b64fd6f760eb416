-- Tell whoever leads that the target's tables may fit by now. Not while the queue is half full: see outbox.ring.
select pg_notify('outbox', 'fits') where pg_notification_queue_usage() < 0.5
