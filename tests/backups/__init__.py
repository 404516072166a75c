"""Other people's backups beside our snapshots: virtnbdbackup at random, each chain restored and compared."""
