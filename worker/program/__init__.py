"""The foundation of both programs: settings, logs, metrics, tracing. Independent of the service itself."""
