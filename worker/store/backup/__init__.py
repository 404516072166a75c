"""Backup and restore of the data that exists only in Redis. Servers and snapshots are also on the nodes, which publish
them again."""
