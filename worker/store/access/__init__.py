"""Who may call: tokens, sessions, rate limits, the audit log."""
