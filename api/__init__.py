"""The front end: the HTTP API and the dashboard; and the command line, which calls the API."""
