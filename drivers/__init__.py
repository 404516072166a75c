"""The hypervisor drivers: mechanism, no policy."""
