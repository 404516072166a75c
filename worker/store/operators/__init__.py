"""The operators' side: every account's jobs, servers and nodes."""
