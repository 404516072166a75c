"""The suite on the versions that a provider may have: `make matrix`."""
