"""The worker: one process per hypervisor node, which runs the jobs of that node's servers."""
