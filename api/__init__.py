"""The front end: HTTP and nothing else."""
