"""Calls for the cell's operators: overview, nodes, findings, audit, tokens."""
