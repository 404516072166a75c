"""The gateway: nodes reach the cell's store through it, and only with calls that it checks."""
