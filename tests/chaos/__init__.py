"""The fault harness: a real cell under random load, processes killed at random, and a model of the expected state."""
