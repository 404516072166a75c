"""Schedules: snapshots that are created automatically."""
