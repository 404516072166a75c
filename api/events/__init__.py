"""The streams of events."""
