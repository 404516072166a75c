"""The worker: one process per hypervisor node, which does the jobs of that node's servers."""
