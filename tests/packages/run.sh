#!/usr/bin/env bash
# Builds the packages twice and compares them, runs lintian, and tests the packages and install.sh in fresh chroots of each
# Debian release (inside.sh). Root only. Takes minutes; downloads Debian packages from MIRROR, and keeps the bare systems
# in .chroots. TRANSCRIPT: a file for the commands that were run in the chroots with the packages. DEBS: a folder with
# packages to test; nothing is then built, compared or installed from the checkout.
# `run.sh units`: instead, boots each Debian release in a virtual machine and tests the units under systemd (machine.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD
releases=(${DEBIAN:-12 13})
declare -A codenames=([12]=bookworm [13]=trixie)
mirror=${MIRROR:-http://deb.debian.org/debian}
python=${VENV:-.venv}/bin/python
chroots=${CHROOTS:-$here/.chroots}
work=$(mktemp -d)
mounted=()

say() { printf 'packages: %s\n' "$*" >&2; }
clean() {
    for path in "${mounted[@]}"; do umount "$path" || true; done
    rm -rf --one-file-system "$work"
}
trap clean EXIT
[ "$(id -u)" -eq 0 ] || { say "run this as root"; exit 1; }

build() { # FOLDER RELEASE...
    local folder=$1 options=()
    shift
    for release; do options+=(--debian "$release"); done
    "$python" -m deploy.packages "$folder" "${options[@]}" >"$work/build.log" 2>&1 ||
        { tail -n 20 "$work/build.log" >&2; exit 1; }
}
next_revision() { # DEB FOLDER: the same files, as the package that comes after it
    local tree=$work/next.tree
    dpkg-deb -R "$1" "$tree"
    sed -i 's/^\(Version: .*\)-1~/\1-2~/' "$tree/DEBIAN/control"
    dpkg-deb --root-owner-group -Zgzip -z1 -b "$tree" "$2" >/dev/null
    rm -r "$tree"
}

bare() { # RELEASE: the tar of a minimal system
    local tar=$chroots/debian-$1.tar
    [ -e "$tar" ] || {
        say "Debian $1: debootstrap from $mirror"
        mkdir -p "$chroots"
        debootstrap --variant=minbase --include=ca-certificates "${codenames[$1]}" "$work/bare" "$mirror" >"$work/bare.log"
        tar -C "$work/bare" -cf "$tar.new" . && mv "$tar.new" "$tar"
        rm -rf --one-file-system "$work/bare"
    }
    echo "$tar"
}

# fresh RELEASE NAME: a system that can reach this machine's mirrors and starts no service.
fresh() {
    root=$work/$2
    mkdir -p "$root" && tar -C "$root" -xf "$(bare "$1")"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    mkdir -p "$chroots/debs-$1" "$root/proc"
    mount -t proc proc "$root/proc" && mounted=("$root/proc" "${mounted[@]}")
    mount --bind "$chroots/debs-$1" "$root/var/cache/apt/archives" && mounted=("$root/var/cache/apt/archives" "${mounted[@]}")
}
inside() { chroot "$root" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "${PIP[@]}" "$@"; }
mapfile -t PIP < <(env | grep -E '^PIP_(INDEX_URL|CERT|DEFAULT_TIMEOUT)=' || true)

build_and_compare() {
    say "building for Debian ${releases[*]}, and for ${releases[0]} again"
    build "$work/first" "${releases[@]}"
    build "$work/second" "${releases[0]}"
    for file in "$work"/second/*; do cmp "$file" "$work/first/${file##*/}"; done
    say "lintian"
    lintian --allow-root --fail-on error --tag-display-limit 0 --suppress-tags no-manual-page "$work"/first/*.deb
}
# prepare_machine RELEASE: a system with a kernel, systemd, libvirt and all packages, which runs machine.sh at boot.
prepare_machine() {
    local packages=(systemd-sysv dbus udev kmod linux-image-cloud-amd64 initramfs-tools zstd redis-server curl openssl)
    packages+=(qemu-system-x86 libvirt-daemon-system libvirt-clients)
    fresh "$1" "machine-$1"
    cp "$debs"/*~deb"$1"_*.deb tests/packages/machine.sh "$root/srv/"
    git archive HEAD deploy | tar -C "$root/srv" -x
    # shellcheck disable=SC2016  # $@ is for the inner shell
    inside env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -q update && apt-get -q -y --no-install-recommends install "$@" /srv/*.deb' \
        sh "${packages[@]}" >"$work/machine.log" 2>&1 || { tail -n 20 "$work/machine.log" >&2; exit 1; }
    umount "$root/var/cache/apt/archives" "$root/proc" && mounted=("${mounted[@]:2}")
    rm "$root/usr/sbin/policy-rc.d"
    cp tests/packages/machine.service "$root/etc/systemd/system/"
    ln -s /etc/systemd/system/machine.service "$root/etc/systemd/system/multi-user.target.wants/"
    for unit in serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done
}
boot() {
    local kernel=("$root"/boot/vmlinuz-*) initrd=("$root"/boot/initrd.img-*)
    mke2fs -q -t ext4 -d "$root" "$work/image" 5G
    # emulated (TCG), because not every machine has KVM
    timeout 3600 qemu-system-x86_64 -machine q35 -cpu max -m 2048 -smp 2 -nic none -display none -monitor none -no-reboot \
        -kernel "${kernel[0]}" -initrd "${initrd[0]}" -append 'root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0' \
        -drive "file=$work/image,format=raw,if=virtio" -device virtio-rng-pci -serial stdio </dev/null |
        tee "$work/console" | sed -un 's/^machine: /    /p' >&2
    grep -q '^machine: all tests passed' "$work/console" || { tail -n 200 "$work/console" >&2; exit 1; }
    rm "$work/image"
}
debs=${DEBS:-$work/first}
if [ "${1:-}" = units ]; then
    [ -n "${DEBS:-}" ] || { say "building for Debian ${releases[*]}"; build "$work/first" "${releases[@]}"; }
    for release in "${releases[@]}"; do
        say "Debian $release: a virtual machine"
        prepare_machine "$release"
        boot
    done
    say "all tests passed"
    exit
fi
[ -n "${DEBS:-}" ] || build_and_compare

for release in "${releases[@]}"; do
    say "Debian $release: install, use, upgrade, roll back, purge"
    fresh "$release" "packages-$release"
    mkdir "$root/srv/old" "$root/srv/new"
    for deb in "$debs"/*~deb"$release"_*.deb; do
        cp "$deb" "$root/srv/old"
        next_revision "$deb" "$root/srv/new"
    done
    cp deploy/redis/users.acl tests/packages/inside.sh "$root/srv/"
    inside bash /srv/inside.sh packages
    { printf '\n## Debian %s\n' "$release"; cat "$root/srv/transcript"; } >>"$work/transcript"
    [ -z "${DEBS:-}" ] || continue
    for mask in 077 000; do
        say "Debian $release: install.sh under umask $mask"
        fresh "$release" "checkout-$release-$mask"
        git archive --prefix=srv/checkout/ HEAD | tar -C "$root" -x
        cp tests/packages/inside.sh "$root/srv/"
        (umask "$mask" && inside bash /srv/inside.sh checkout)
    done
done
[ -z "${TRANSCRIPT:-}" ] || { cat tests/packages/transcript.md "$work/transcript" >"$TRANSCRIPT"; say "see $TRANSCRIPT"; }
say "all tests passed"
