"""`vps-snapshots`, the command line for people and scripts: a client of the HTTP API, and of nothing else of ours."""
