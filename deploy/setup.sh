#!/usr/bin/env bash
# Makes this checkout ready to run: Debian's packages, then .venv from the lock files, then the project itself, editable.
#
# Runs from everywhere as often as you like: what is there already is not touched, and a second run takes milliseconds.
#   deploy/setup.sh packages     only what needs root
#   deploy/setup.sh tests        only Debian's packages that the tests need on top
#   PYTHON=/usr/bin/python3.12   interpreter of the venv, 3.11 or later (default: the venv's own, for a new one python3)
#   VENV=.venv                   where the venv goes
#   DRIVER=fake                  without the hypervisor, for `make run DRIVER=fake`
# It prints a line for each step; what apt and pip print is in $VENV-setup.log.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
LOCK=deploy/lock
LOG=$VENV-setup.log

# What `make` needs of Debian 12 beyond git, make and python3, by what asks for it:
PACKAGES=(
    libvirt-dev pkg-config gcc                      # libvirt-python is shipped as source only
    redis-server                                    # started by us, never as a service
    curl openssl                                    # the calls that `make run` and the README show; TLS to Redis in the tests
    systemd                                         # the tests have it verify the units
)
HYPERVISOR_PACKAGES=(
    libvirt-daemon-driver-qemu libvirt-daemon       # the hypervisor's driver and its helper programs; no service comes along
    qemu-system-x86 qemu-utils ovmf
    swtpm swtpm-tools                               # a server with a TPM, whose state snapshots hold
    busybox-static cpio xz-utils                    # the demo's and the tests' guest is built from Debian's kernel
)
# ... and what only the tests ask for: a browser for the dashboard; Prometheus with promtool for metrics and alerts; other
# people's backups beside our snapshots
TEST_PACKAGES=(chromium prometheus virtnbdbackup)
# ... and where PYTHON is Debian's own, which comes without venv and headers:
DEBIAN_PYTHON_PACKAGES=(python3-venv python3-dev)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# step WORDS COMMAND...: one line on the terminal, the command's output in the log; ends the setup where the command fails.
step() {
    say "$1"
    printf '\n--- %s\n' "$1" >>"$LOG"
    shift
    "$@" >>"$LOG" 2>&1 && return
    tail -n 15 "$LOG" | sed 's/^/    /' >&2
    die "that failed; all of its output is in $LOG"
}

# What this venv was made from. The interpreter is part of it only where one was asked for.
fingerprint() { { pwd && cat "$LOCK"/*.txt pyproject.toml deploy/setup.sh; } | sha256sum | cut -d ' ' -f 1; }
is_current() { [ "$(sed -n 1p "$VENV/.setup" 2>/dev/null)" = "$(fingerprint)" ]; }
# A setup for the fake driver has left the hypervisor out; each other needs it.
has_hypervisor() { [ "${DRIVER:-}" = fake ] || [ "$(sed -n 3p "$VENV/.setup" 2>/dev/null)" = hypervisor ]; }
is_of_python() { [ -z "${PYTHON:-}" ] || [ "$(sed -n 2p "$VENV/.setup" 2>/dev/null)" = "$(command -v "$PYTHON")" ]; }

if [ -z "${1:-}" ] && is_current && is_of_python && has_hypervisor; then exit 0; fi

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "not root and no sudo here; let root run once: $PWD/deploy/setup.sh packages; deploy/setup.sh tests"
    fi
}

# Debian starts a service with its package unless a policy says no. A policy of the machine's own stands.
install_packages() {
    # A source that can't be reached is no reason to stop: what is missing then shows below.
    step "reading Debian's package lists" updated_lists
    # shellcheck disable=SC2016  # $0 and $@ are the inner shell's
    step "installing ${#missing[@]} Debian packages and what they need: ${missing[*]}" as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        if ! [ -e /usr/sbin/policy-rc.d ]; then
            trap "rm -f /usr/sbin/policy-rc.d" EXIT
            printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
        fi
        for service in redis-server prometheus; do
            command -v $service >/dev/null || new="${new:-} $service"
        done
        apt-get -q -y install --no-install-recommends "$@" || exit
        [ -d /run/systemd/system ] || exit 0
        for service in ${new:-}; do
            systemctl disable $service 2>/dev/null || true
        done
    ' install "${missing[@]}"
}

updated_lists() { as_root apt-get -q update || say "apt-get update had errors, going on"; }

missing=()
ensure_packages() {
    local wanted=("$@") package
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here: these, by their Debian names, must be there: ${wanted[*]}"
        return
    fi
    missing=()
    for package in "${wanted[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages
}

ensure_hypervisor_account() {
    # Run by root, libvirt's driver insists on this account even where qemu.conf names another. Debian makes it with the
    # daemon, which we leave out; number and home are Debian's, so that a libvirtd installed later finds what it expects.
    if ! getent passwd libvirt-qemu >/dev/null && { [ ${#missing[@]} -gt 0 ] || [ "$(id -u)" -eq 0 ]; }; then
        as_root groupadd --system --force kvm
        as_root groupadd --system --force --key SYS_GID_MAX=64055 --gid 64055 libvirt-qemu
        as_root useradd --system --key SYS_UID_MAX=64055 --uid 64055 --gid kvm --groups libvirt-qemu \
            --no-create-home --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu
    fi
}

ensure_venv() {
    if [ -n "${PYTHON:-}" ] && [ -d "$VENV" ] && ! is_of_python; then rm -rf "$VENV"; fi
    [ -x "$VENV/bin/pip" ] || step "making $VENV with $("$python" --version)" "$python" -m venv --clear "$VENV"
    local pip=("$VENV/bin/pip" install --disable-pip-version-check --no-input --progress-bar off)
    # Two steps, so that what builds a source package is locked as well: pip would fetch build tools unchecked.
    step "installing the build tools from the lock" "${pip[@]}" --require-hashes -r "$LOCK/build.txt"
    step "installing $(grep -c '^[a-z]' "$LOCK/dev.txt") Python packages from the lock" \
        "${pip[@]}" --no-build-isolation --require-hashes -r "$LOCK/dev.txt"
    step "installing this project, editable" "${pip[@]}" --no-build-isolation --no-deps -e .
    printf '%s\n%s\n%s\n' "$(fingerprint)" "$(command -v "$python")" "$hypervisor" >"$VENV/.setup"
    say "ready"
}

# One at a time: a `make test` beside a `make run` waits for its venv instead of tearing at it.
exec 9<.
flock 9
: >"$LOG"
if [ "${1:-}" = tests ]; then ensure_packages "${TEST_PACKAGES[@]}"; exit 0; fi
if [ -z "${1:-}" ] && is_current && is_of_python && has_hypervisor; then exit 0; fi

python=${PYTHON:-$(sed -n 2p "$VENV/.setup" 2>/dev/null || true)}
python=${python:-python3}
command -v "$python" >/dev/null || die "$python: no such interpreter"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" --version): 3.11 or later is needed, set PYTHON="
[ "$("$python" -c 'import sys; print(sys.base_prefix)')" != /usr ] || PACKAGES+=("${DEBIAN_PYTHON_PACKAGES[@]}")
hypervisor=
if [ "${DRIVER:-}" != fake ]; then
    hypervisor=hypervisor
    PACKAGES+=("${HYPERVISOR_PACKAGES[@]}")
fi
ensure_packages "${PACKAGES[@]}"
[ -z "$hypervisor" ] || ensure_hypervisor_account
[ "${1:-}" = packages ] || ensure_venv
