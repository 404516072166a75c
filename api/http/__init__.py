"""The shared parts of all calls: requests, answers, problems, callers, the server."""
