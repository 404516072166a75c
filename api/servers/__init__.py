"""Servers: their status, and whether they accept new jobs."""
