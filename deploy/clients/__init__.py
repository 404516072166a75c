"""Clients of the API for Python and TypeScript, a collection for Ansible, and the generator of their models."""
