"""Webhooks of an account and their deliveries."""
