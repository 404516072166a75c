#!/usr/bin/env bash
# Prepares this checkout: installs Debian packages, .venv from the lock files, and the project itself (editable).
#
# Can be run from any folder and repeatedly: installed packages are kept, and a second run takes milliseconds.
#   deploy/setup.sh packages     only the Debian packages, which need root
#   deploy/setup.sh tests        only the additional Debian packages for the tests
#   deploy/setup.sh packaging    only those to build Debian packages and to test them
#   deploy/setup.sh bench        only the additional Debian packages for the benchmarks
#   PYTHON=/usr/bin/python3.12   interpreter of the venv, 3.11 or later (default: the venv's own, for a new one python3)
#   VENV=.venv                   folder of the venv
#   DRIVER=fake                  only what the service needs without a hypervisor: for `DRIVER=fake make run`
# Prints one line per step; the output of apt and pip goes to $VENV-setup.log.
set -euo pipefail
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
LOCK=deploy/lock
LOG=$VENV-setup.log

# Debian 12 packages that `make` needs besides git, make and python3, and why:
PACKAGES=(
    redis-server                                    # started by our programs, never as a service
    curl openssl                                    # for the calls in `make run` and the README, and TLS to Redis in the tests
)
HYPERVISOR_PACKAGES=(
    libvirt-dev pkg-config gcc                      # libvirt-python is available only as source
    systemd                                         # the tests verify the units with it
    libvirt-daemon-driver-qemu libvirt-daemon       # libvirt's QEMU driver and its helper programs, without a service
    qemu-system-x86 qemu-utils ovmf
    swtpm swtpm-tools                               # servers with a TPM
    busybox-static cpio xz-utils                    # to build the guest of the demo and the tests from Debian's kernel
)
# Since Debian 13 libvirt's storage pools are a package of their own
if [ "$(. /etc/os-release && echo "${VERSION_ID:-13}")" != 12 ]; then HYPERVISOR_PACKAGES+=(libvirt-daemon-driver-storage); fi
# Only for the tests: a browser for the dashboard, Prometheus with promtool for metrics and alerts, a backup tool, encryption,
# proxies before front ends, network namespaces, virsh, which a page for providers uses, and what writes the packages' scripts
TEST_PACKAGES=(chromium-headless-shell prometheus virtnbdbackup age haproxy nginx-light iproute2 libvirt-clients debhelper)
# Only for the benchmarks: wrk makes the calls of `make bench-http`
BENCH_PACKAGES=(wrk)
# Only for `make deb` and `make test-packages`, which has chroots without a network, and builds an image without a daemon
PACKAGING_PACKAGES=(buildah debhelper debootstrap iproute2 lintian)
# If PYTHON is Debian's own, which comes without venv and headers:
DEBIAN_PYTHON_PACKAGES=(python3-venv)
DEBIAN_PYTHON_HEADERS=(python3-dev)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# step TEXT COMMAND...: prints the text, writes the command's output to the log, and exits if the command fails.
step() {
    say "$1"
    printf '\n--- %s\n' "$1" >>"$LOG"
    shift
    "$@" >>"$LOG" 2>&1 && return
    tail -n 15 "$LOG" | sed 's/^/    /' >&2
    die "this step failed; its full output is in $LOG"
}

# A fingerprint of the venv's inputs. The interpreter is included only if PYTHON is set.
fingerprint() { { pwd && cat "$LOCK"/*.txt pyproject.toml deploy/setup.sh; } | sha256sum | cut -d ' ' -f 1; }
is_current() { [ "$(sed -n 1p "$VENV/.setup" 2>/dev/null)" = "$(fingerprint)" ]; }
# A setup with DRIVER=fake installs neither the hypervisor nor the development tools; everything else needs them.
has_hypervisor() { [ "${DRIVER:-}" = fake ] || [ "$(sed -n 3p "$VENV/.setup" 2>/dev/null)" = hypervisor ]; }
is_of_python() { [ -z "${PYTHON:-}" ] || [ "$(sed -n 2p "$VENV/.setup" 2>/dev/null)" = "$(command -v "$PYTHON")" ]; }

if [ -z "${1:-}" ] && is_current && is_of_python && has_hypervisor; then exit 0; fi

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "needs root, and sudo is not installed; run as root: $PWD/deploy/setup.sh packages; deploy/setup.sh tests"
    fi
}

# Debian starts a package's service on installation, unless policy-rc.d forbids it. An existing policy is kept.
install_packages() {
    # Continue if a package source is unreachable: the installation below fails if a package is missing.
    step "updating Debian's package lists" updated_lists
    # shellcheck disable=SC2016  # $0 and $@ are for the inner shell
    step "installing ${#missing[@]} Debian packages and their dependencies: ${missing[*]}" as_root env DEBIAN_FRONTEND=noninteractive sh -c '
        if ! [ -e /usr/sbin/policy-rc.d ]; then
            trap "rm -f /usr/sbin/policy-rc.d" EXIT
            printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
        fi
        for service in redis-server prometheus nginx; do
            command -v $service >/dev/null || new="${new:-} $service"
        done
        apt-get -q -y install --no-install-recommends "$@" || exit
        [ -d /run/systemd/system ] || exit 0
        for service in ${new:-}; do
            systemctl disable $service 2>/dev/null || true
        done
    ' install "${missing[@]}"
}

updated_lists() { as_root apt-get -q update || say "apt-get update failed, continuing"; }

missing=()
ensure_packages() {
    local packages=("$@") package
    if ! command -v apt-get >/dev/null; then
        say "apt-get is not installed; make sure that these Debian packages are installed: ${packages[*]}"
        return
    fi
    missing=()
    for package in "${packages[@]}"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || install_packages
}

ensure_hypervisor_account() {
    # If libvirt's driver runs as root, it requires this account even if qemu.conf names another. Debian creates it with the
    # daemon, which we do not install. ID and home are Debian's, so that a libvirtd installed later finds what it expects.
    if ! getent passwd libvirt-qemu >/dev/null && { [ ${#missing[@]} -gt 0 ] || [ "$(id -u)" -eq 0 ]; }; then
        as_root groupadd --system --force kvm
        as_root groupadd --system --force --key SYS_GID_MAX=64055 --gid 64055 libvirt-qemu
        as_root useradd --system --key SYS_UID_MAX=64055 --uid 64055 --gid kvm --groups libvirt-qemu \
            --no-create-home --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu
    fi
}

ensure_venv() {
    if [ -n "${PYTHON:-}" ] && [ -d "$VENV" ] && ! is_of_python; then rm -rf "$VENV"; fi
    [ -x "$VENV/bin/pip" ] || step "creating $VENV with $("$python" --version)" "$python" -m venv --clear "$VENV"
    local pip=("$VENV/bin/pip" install --disable-pip-version-check --no-input --progress-bar off)
    # In two steps, so that the build tools are also locked: otherwise, pip would fetch them without hashes.
    step "installing the build tools from the lock" "${pip[@]}" --require-hashes -r "$LOCK/build.txt"
    local lock=$LOCK/dev.txt
    [ -n "$hypervisor" ] || lock=$LOCK/simulated.txt
    step "installing $(grep -c '^[a-z]' "$lock") Python packages from the lock" \
        "${pip[@]}" --no-build-isolation --require-hashes -r "$lock"
    step "installing this project, editable" "${pip[@]}" --no-build-isolation --no-deps -e .
    printf '%s\n%s\n%s\n' "$(fingerprint)" "$(command -v "$python")" "$hypervisor" >"$VENV/.setup"
    say "ready"
}

# One at a time: `make test` and `make run` must not change the venv at the same time.
exec 9<.
flock 9
: >"$LOG"
if [ "${1:-}" = tests ]; then ensure_packages "${TEST_PACKAGES[@]}"; exit 0; fi
if [ "${1:-}" = packaging ]; then ensure_packages "${PACKAGING_PACKAGES[@]}"; exit 0; fi
if [ "${1:-}" = bench ]; then ensure_packages "${BENCH_PACKAGES[@]}"; exit 0; fi
if [ -z "${1:-}" ] && is_current && is_of_python && has_hypervisor; then exit 0; fi

python=${PYTHON:-$(sed -n 2p "$VENV/.setup" 2>/dev/null || true)}
python=${python:-python3}
command -v "$python" >/dev/null || die "$python: no such interpreter"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$("$python" --version): 3.11 or later is needed, set PYTHON="
is_debian=; [ "$("$python" -c 'import sys; print(sys.base_prefix)')" != /usr ] || is_debian=yes
[ -z "$is_debian" ] || PACKAGES+=("${DEBIAN_PYTHON_PACKAGES[@]}")
hypervisor=
if [ "${DRIVER:-}" != fake ]; then
    hypervisor=hypervisor
    PACKAGES+=("${HYPERVISOR_PACKAGES[@]}")
    [ -z "$is_debian" ] || PACKAGES+=("${DEBIAN_PYTHON_HEADERS[@]}")
fi
ensure_packages "${PACKAGES[@]}"
[ -z "$hypervisor" ] || ensure_hypervisor_account
[ "${1:-}" = packages ] || ensure_venv
