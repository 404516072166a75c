"""What every call needs: requests, answers, problems, callers, the server."""
