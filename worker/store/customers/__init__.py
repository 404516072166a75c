"""The customers' side: snapshots, jobs and servers of an account."""
