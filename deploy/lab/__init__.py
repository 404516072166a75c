"""A node on this machine: an embedded libvirt, qcow2 disks, and a tiny Linux guest controlled over its console."""
