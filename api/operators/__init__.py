"""The cell, for its operators: overview, nodes, findings, audit, tokens."""
