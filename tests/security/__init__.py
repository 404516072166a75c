"""What an attacker tries, with a credential that is real, and what comes of it: nothing."""
