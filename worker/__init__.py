"""The worker: one process per hypervisor node, which runs the jobs of that node's servers.

The front end uses two of its packages: `store` and `program`.
"""
