"""The document of the API, and what it is shown as."""
