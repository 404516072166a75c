"""Servers: what they do now, and what they accept."""
