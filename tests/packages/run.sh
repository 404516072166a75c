#!/usr/bin/env bash
# Builds the packages twice and compares them, runs lintian, and tries the packages and install.sh in fresh chroots of each
# Debian release (inside.sh). Root only. Takes minutes; downloads Debian packages from MIRROR, and keeps the bare systems
# in .chroots. TRANSCRIPT: a file for what was done in the chroots with the packages. DEBS: a folder with packages, which are
# then only used: nothing is built, compared or installed from the checkout.
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

# fresh RELEASE NAME: a system that reaches the mirrors that this machine reaches, and starts no service.
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
debs=${DEBS:-$work/first}
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
say "all hold"
