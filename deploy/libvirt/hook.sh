#!/bin/sh
# /etc/libvirt/hooks/qemu.d/vps-snapshots: libvirt runs this before it starts a VM, with the domain's XML on standard input.
# Only exit status 75 refuses the start. On any other error, the VM starts.
[ "$2" = prepare ] || exit 0
# -I: no module is imported from the working directory, or from a folder that the environment names
/opt/vps-snapshots/bin/python -I -m worker.start_guard /etc/vps-snapshots/worker.toml
[ $? -ne 75 ]
