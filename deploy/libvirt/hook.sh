#!/bin/sh
# /etc/libvirt/hooks/qemu.d/vps-snapshots: libvirt asks before it starts a VM, with the domain's XML on standard input.
# Only a clear no (75) counts: whatever else goes wrong here, VMs start.
[ "$2" = prepare ] || exit 0
/opt/vps-snapshots/bin/python -m worker.start_guard /etc/vps-snapshots/worker.toml
[ $? -ne 75 ]
