"""The nodes' side: leases, running jobs, the contents of disks, queues."""
