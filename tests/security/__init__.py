"""Attacks on the service with what an attacker would really have."""
