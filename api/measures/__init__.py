"""The metrics of a front end."""
