"""Attacks with a real credential, none of which succeeds."""
