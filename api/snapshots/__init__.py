"""Snapshots: create, list, edit, restore, delete."""
