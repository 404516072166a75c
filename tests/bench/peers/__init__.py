"""The peers of the front end: minimal programs that answer the same calls."""
