"""Backup and restore of what only Redis knows. Servers and snapshots are also on the nodes, which publish them anew."""
