"""What a front end measures."""
