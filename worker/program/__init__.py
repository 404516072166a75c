"""The foundation of both programs: settings, logs, metrics, tracing, background work."""
