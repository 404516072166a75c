"""The test suite with the versions that a provider may have: `make matrix`."""
