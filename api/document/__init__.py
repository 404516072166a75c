"""The document of the API (OpenAPI), and its HTML page."""
