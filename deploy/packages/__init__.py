"""Builds the wheel and the Debian packages: `make deb`."""
