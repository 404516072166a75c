#!/usr/bin/env bash
# libvirtd.sh FOLDER: a libvirtd of one's own, for root, in the foreground: killed, it is gone.
#
# In a mount namespace of its own, where its settings, state, sockets, logs and cache are folders below FOLDER: a libvirtd
# of the machine sees nothing of it. Connect with qemu+unix:///system?socket=FOLDER/run/libvirt-sock
# Guests go on when it is killed, and are found again by the next one in the same FOLDER.
set -euo pipefail
folder=$(realpath -m "${1:?usage: libvirtd.sh FOLDER}")
mkdir -p "$folder"/{etc,lib,run,cache,log}
# QEMU runs as root: no image changes its owner, and libvirt need not ask QEMU anew at each call what it can do
cat >"$folder/etc/qemu.conf" <<'EOF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
namespaces = []
cgroup_controllers = []
EOF
echo 'auth_unix_rw = "none"' >"$folder/etc/libvirtd.conf"
(cd "$(dirname "$0")/../.." && python3 -m drivers.cut_off_starts "$folder/run/qemu") # as deploy/systemd/libvirtd.conf does
exec unshare --mount --propagation private bash -c '
  for place in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mkdir -p "${place#*:}"
    mount --bind "$0/${place%%:*}" "${place#*:}"
  done
  exec libvirtd --pid-file "$0/run/libvirtd.pid"' "$folder" # its usual place is the machine's: only one could run
