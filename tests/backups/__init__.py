"""Other backup tools together with this service: virtnbdbackup at random times, each chain restored and compared."""
