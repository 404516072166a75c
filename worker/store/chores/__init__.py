"""What any process does for the whole cell: expiry, reaping, schedules, retries."""
