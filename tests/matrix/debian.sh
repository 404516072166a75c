#!/usr/bin/env bash
# debian.sh FOLDER SUITE: a chroot of the Debian release in FOLDER, with this checkout in /srv/checkout, set up. Root only.
# debian.sh FOLDER run COMMAND...: runs the command there. FOLDER is kept; `rm -rf --one-file-system` deletes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$1 suite=$2
mirror=${MIRROR:-http://deb.debian.org/debian}
[ "$(id -u)" -eq 0 ] || { echo "debian.sh: run this as root" >&2; exit 1; }

mounts() {
    # in separate namespaces, so that no mount is left, however this script ends
    mount --bind "$root" "$root" # what is / inside must be a mount, for namespaces inside
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o size=2g tmpfs "$root/dev/shm"
    mount -t tmpfs tmpfs "$root/run"
}
inside() {
    mapfile -t pip < <(env | grep -E '^PIP_(INDEX_URL|CERT|DEFAULT_TIMEOUT)=' || true)
    chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "${pip[@]}" \
        bash -c 'cd /srv/checkout && "$@"' inside "$@"
}
if [ -z "${MATRIX_NAMESPACE:-}" ]; then exec env MATRIX_NAMESPACE=1 unshare --mount "$PWD/tests/matrix/debian.sh" "$@"; fi

if [ "$suite" = run ]; then
    mounts
    inside "${@:3}"
    exit
fi
if ! [ -d "$root" ]; then
    debootstrap --variant=minbase --include=ca-certificates,git,make,python3 "$suite" "$root.new" "$mirror"
    printf '#!/bin/sh\nexit 101\n' >"$root.new/usr/sbin/policy-rc.d" && chmod 755 "$root.new/usr/sbin/policy-rc.d"
    mv "$root.new" "$root"
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
mkdir -p "$root/srv/checkout"
git ls-files -z | tar --null --files-from=- -c | tar -C "$root/srv/checkout" -x
mounts
inside env PYTHON=python3 deploy/setup.sh
inside deploy/setup.sh tests
inside mkdir -p /var/lib/libvirt/qemu/nvram # as libvirtd does at its first start
