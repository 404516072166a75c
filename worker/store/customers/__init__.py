"""The customer's side: snapshots, jobs and servers of an account."""
