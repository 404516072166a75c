"""Webhooks: the calls, and the sender of their deliveries."""
