#!/usr/bin/env bash
# libvirtd.sh FOLDER [USER]: runs a separate libvirtd in the foreground, as root.
#
# It runs in its own mount namespace, where its settings, state, sockets, logs and cache are folders in FOLDER, so that it
# does not affect the machine's own libvirtd. Connect with qemu+unix:///system?socket=FOLDER/run/libvirt-sock
# Guests keep running when it is killed; the next libvirtd in the same FOLDER finds them again.
set -euo pipefail
folder=$(realpath -m "${1:?usage: libvirtd.sh FOLDER [USER]}")
user=${2-root}
gives=$([ "$user" = root ] && echo 0 || echo 1)
mkdir -p "$folder"/{etc,lib,run,cache,log}
# As root, QEMU leaves images their owner, and libvirt need not probe QEMU again at each call. As another user, it gets
# the images of a server for as long as it runs, as on a node.
cat >"$folder/etc/qemu.conf" <<EOF
user = "$user"
group = "$(id -gn "$user")"
dynamic_ownership = $gives
remember_owner = $gives
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
  export LC_ALL=C.UTF-8 LANGUAGE= # as the same file does
  exec libvirtd --pid-file "$0/run/libvirtd.pid"' "$folder" # not the default path, which the machine's own libvirtd uses
