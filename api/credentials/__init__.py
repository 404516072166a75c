"""The credentials of nodes: the calls, for operators."""
