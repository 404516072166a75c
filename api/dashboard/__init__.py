"""The operators' dashboard at /ops/: pages rendered here and kept fresh by htmx."""
