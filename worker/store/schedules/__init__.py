"""Schedules of an account's servers."""
