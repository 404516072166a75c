"""What a program is made of: settings, Redis connection, logs, metrics, tracing. Knows nothing of the service."""
