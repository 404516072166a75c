#!/usr/bin/env bash
# Builds the packages twice and compares them, runs lintian, builds the image of the Containerfile, and tests the packages and
# install.sh in fresh chroots of each Debian release (inside.sh). Root only. Takes minutes; downloads Debian packages from MIRROR
# (default: this machine's), and keeps the bare systems in .chroots. TRANSCRIPT: a file for the commands that were run in the
# chroots with the packages. DEBS: a folder with packages to test; nothing is then built, compared or installed from the checkout.
# FROM: the tag or commit whose packages are upgraded to those of this checkout, and come back; default: the newest tag, or else
# the first commit that has packages.
# `run.sh short`, which CI runs: the same, but install.sh runs once for each release, under one of the umasks, and the packages
# that are upgraded are also those of this checkout.
# `run.sh units`: instead, boots each Debian release in a virtual machine and tests the units under systemd (machine.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
mode=${1:-full}
releases=(${DEBIAN:-12 13})
declare -A codenames=([12]=bookworm [13]=trixie)
declare -A masks=([12]='077 000' [13]='000 077')
[ "$mode" != short ] || masks=([12]=077 [13]=000)
first=7f9e47a9 # before it, there are no packages
python=$(realpath --no-symlinks "${VENV:-.venv}/bin/python")
chroots=${CHROOTS:-$PWD/.chroots}
work=$chroots/work

say() { printf 'packages: %s\n' "$*" >&2; }
[ "$(id -u)" -eq 0 ] || { say "run this as root"; exit 1; }
if [ -z "${PACKAGES_NAMESPACE:-}" ]; then
    # in namespaces of its own: whatever ends this script, no mount and no program is left
    exec env PACKAGES_NAMESPACE=1 unshare --mount --mount-proc --pid --fork --kill-child "$PWD/tests/packages/run.sh" "$@"
fi
trap 'exit 1' INT TERM # the first process of a namespace is not ended by a signal that it does not handle
mkdir -p "$work"
mount -t tmpfs -o size=80% tmpfs "$work" # dpkg waits for the disk after each file

# shellcheck disable=SC2016  # apt-get reads the name in the format
mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 2>/dev/null | awk '/^http/ && !found++' || true)}
mirror=${mirror:-http://deb.debian.org/debian}; mirror=${mirror%/}
eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy | sed 's/^/export /')"
mapfile -t network < <(env | grep -E '^(PIP_(INDEX_URL|TRUSTED_HOST|CERT|DEFAULT_TIMEOUT)|https?_proxy|no_proxy)=' || true)

# at_once STEP...: functions with their arguments, side by side. Ends the script if one fails.
at_once() {
    local step pids=() failed=
    for step; do
        { $step 2>&1 | sed -u "s/^/$step: /" >&2; } &
        pids+=($!)
    done
    for step; do
        wait "${pids[0]}" || failed+=" [$step]"
        pids=("${pids[@]:1}")
    done
    [ -z "$failed" ] || { say "FAILED:$failed"; exit 1; }
}
quietly() { # COMMAND...
    local log
    log=$(mktemp -p "$work")
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; echo "failed: $*" >&2; exit 1; }
}

build() { # FOLDER RELEASE...
    local folder=$1
    shift
    quietly "$python" -m deploy.packages "$work/$folder" "${@/#/--debian=}"
}
build_from() { # COMMIT RELEASE...
    local commit=$1
    shift
    git clone --quiet --shared --no-checkout . "$work/checkout"
    git -C "$work/checkout" checkout --quiet "$commit"
    # shellcheck disable=SC2016  # $1 and $@ are for the inner shell
    quietly env TMPDIR="$work" sh -c 'cd "$1" && shift && exec "$@"' sh "$work/checkout" \
        "$python" -m deploy.packages "$work/from" "${@/#/--debian=}"
}
compare() { # RELEASE...
    build again "$@"
    for file in "$work"/again/*; do cmp "$file" "$work/first/${file##*/}"; done
    echo "built twice, with the same bytes"
}
lint() { # RELEASE
    lintian --allow-root --display-level error --fail-on error --tag-display-limit 0 "$work"/first/*~deb"$1"_*.deb
    echo "no errors"
}
next_revision() { # DEB FOLDER: the same files, with another line in each of the settings, as the package that comes after it
    local tree
    tree=$(mktemp -d -p "$work")
    dpkg-deb -R "$1" "$tree"
    find "$tree" -path '*/etc/vps-snapshots/*.toml' -exec sed -i '1i # of the next release' {} +
    sed -i 's/^\(Version: .*\)-1~/\1-2~/' "$tree/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone -b "$tree" "$2" >/dev/null
    rm -r "$tree"
}

bare() { # RELEASE: the tar of a minimal system
    local tar=$chroots/debian-$1.tar
    [ ! -e "$tar" ] || return 0
    echo "debootstrap from $mirror"
    quietly debootstrap --variant=minbase --include=ca-certificates "${codenames[$1]}" "$work/bare-$1" "$mirror"
    tar -C "$work/bare-$1" -cf "$tar.new" . && mv "$tar.new" "$tar"
    rm -rf --one-file-system "$work/bare-$1"
}
# fresh RELEASE NAME: a system that can reach this machine's mirrors and starts no service.
fresh() {
    root=$work/$2
    mkdir "$root"
    tar -C "$root" -xf "$chroots/debian-$1.tar"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    mkdir -p "$chroots/debs-$1" "$root/proc"
    mount -t proc proc "$root/proc"
    mount --bind "$chroots/debs-$1" "$root/var/cache/apt/archives"
}
within=()
inside() {
    "${within[@]}" chroot "$root" env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        "${network[@]}" "$@"
}
without_network() {
    # shellcheck disable=SC2016  # $@ is for the inner shell
    local within=(unshare --net bash -c 'ip link set lo up && exec "$@"' bash)
    "$@"
}

packages() { # RELEASE
    local deb
    fresh "$1" "packages-$1"
    mkdir "$root/srv/old" "$root/srv/new"
    cp "${old:-$debs}"/*~deb"$1"_*.deb "$root/srv/old"
    for deb in "$debs"/*~deb"$1"_*.deb; do next_revision "$deb" "$root/srv/new"; done
    cp deploy/redis/users.acl tests/packages/{inside.sh,shared.sh,customer.py} "$root/srv/"
    inside bash /srv/inside.sh download
    without_network inside bash /srv/inside.sh packages # our packages download nothing, and each release has its own port 8080
    [ -z "${DEBS:-}" ] || return 0
    for mask in ${masks[$1]}; do
        echo "install.sh under umask $mask"
        fresh "$1" "checkout-$1-$mask"
        git archive --prefix=srv/checkout/ HEAD | tar -C "$root" -x
        cp tests/packages/{inside,shared}.sh "$root/srv/"
        (umask "$mask" && inside bash /srv/inside.sh checkout)
    done
}

# On the bare system in place of the base image, because a machine that tests may reach no registry of images.
container() { # RELEASE
    local tool=(buildah --root "$work/images" --runroot "$work/images-run" --storage-driver vfs) made
    made=$("${tool[@]}" from scratch)
    quietly "${tool[@]}" add "$made" "$chroots/debian-$1.tar" /
    quietly "${tool[@]}" commit --rm "$made" "docker.io/library/debian:$1-slim"
    quietly "${tool[@]}" bud --isolation chroot --pull-never --file deploy/Containerfile --tag vps-snapshots "$debs"
    made=$("${tool[@]}" from --pull-never vps-snapshots)
    [ "$("${tool[@]}" run --isolation chroot "$made" -- id -u)" = 65534 ] || { echo "the image runs as root"; exit 1; }
    quietly "${tool[@]}" run --isolation chroot "$made" -- vps-snapshots-api serve --help
    # shellcheck disable=SC2016  # for the shell in the container
    quietly "${tool[@]}" run --isolation chroot "$made" -- sh -c 'for kind in sbom.json licenses.txt; do test -s /usr/share/vps-snapshots-api/*.$kind || exit 1; done'
    echo "built, and its program runs"
}

# prepare_machine RELEASE: a system with a kernel, systemd, libvirt and all packages, which runs machine.sh at boot.
prepare_machine() {
    local deb packages=(systemd-sysv dbus udev kmod linux-image-cloud-amd64 initramfs-tools zstd redis-server curl openssl iproute2)
    packages+=(qemu-system-x86 libvirt-daemon-system libvirt-clients)
    fresh "$1" "machine-$1"
    cp "$debs"/*~deb"$1"_*.deb tests/packages/{machine,shared}.sh "$root/srv/"
    mkdir "$root/srv/new"
    for deb in "$debs"/*~deb"$1"_*.deb; do next_revision "$deb" "$root/srv/new"; done
    git archive HEAD deploy | tar -C "$root/srv" -x
    # shellcheck disable=SC2016  # $@ is for the inner shell
    quietly inside sh -c 'apt-get -q update && apt-get -q -y --no-install-recommends install "$@" /srv/*.deb' sh "${packages[@]}"
    umount "$root/var/cache/apt/archives" "$root/proc"
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

debs=${DEBS:-$work/first} old=
say "Debian ${releases[*]}"
building=()
[ -n "${DEBS:-}" ] || building=("build first ${releases[*]}")
if [ "$mode" = full ] && [ -z "${DEBS:-}" ]; then
    tag=$(git for-each-ref --count=1 --sort=-version:refname --format='%(refname:short)' 'refs/tags/v*')
    from=${FROM:-${tag:-$first}}
    say "the upgrade is from $from"
    building+=("build_from $from ${releases[*]}")
    old=$work/from
fi
at_once "${building[@]}" "${releases[@]/#/bare }"
if [ "$mode" = units ]; then
    for release in "${releases[@]}"; do
        say "Debian $release: a virtual machine"
        prepare_machine "$release"
        boot
    done
    say "all tests passed"
    exit
fi
checks=("${releases[@]/#/packages }")
[ -n "${DEBS:-}" ] || checks+=("compare ${releases[*]}" "${releases[@]/#/lint }")
[[ " ${releases[*]} " != *" 13 "* ]] || checks+=("container 13")
at_once "${checks[@]}"
if [ -n "${TRANSCRIPT:-}" ]; then
    cat tests/packages/transcript.md >"$TRANSCRIPT"
    for release in "${releases[@]}"; do
        { printf '\n## Debian %s\n' "$release"; cat "$work/packages-$release/srv/transcript"; } >>"$TRANSCRIPT"
    done
    say "see $TRANSCRIPT"
fi
say "all tests passed, after $SECONDS s"
