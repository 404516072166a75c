"""The procedures: what is done for each kind of job, step by step."""
