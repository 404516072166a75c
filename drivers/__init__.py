"""Drivers: how a hypervisor is told what to do. They know mechanism and no policy."""
