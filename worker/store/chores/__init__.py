"""Chores that any process may do for the whole cell: due schedules, expiry, stale jobs, old failures."""
