"""The node's side: the lease, jobs as they run, what is on the disks, arq's queue."""
