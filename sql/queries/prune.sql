select emptied, up_to_id, locked, rotated from outbox.prune(%(floor_id)s, make_interval(secs => %(retention)s))
