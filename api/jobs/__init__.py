"""Jobs: the work that was accepted."""
