"""The outboxd process: it reads what committed on the source and applies it to the target."""
