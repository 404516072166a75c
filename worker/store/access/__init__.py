"""Access to the API: tokens, sessions, rate limits, the audit log."""
