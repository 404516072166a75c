"""What the front end is compared with: the same calls with the least that could answer them."""
