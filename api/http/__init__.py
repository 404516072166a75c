"""What every call stands on: requests, answers, refusals, callers, the server."""
