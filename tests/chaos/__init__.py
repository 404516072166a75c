"""The fault harness: a real cell under random work, its parts killed at random, and a model of what must be true."""
