#!/usr/bin/env bash
# Installs this checkout on a machine of production: deploy/install.sh node | front-end [tracing]     (as root, on Debian 12)
#
# Debian's packages, the programs with their own venv in /opt/vps-snapshots, hash-checked from the lock, the unit, and the
# example settings where there are none yet. Starts nothing. Run again to upgrade; then restart the unit.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

role=${1:-}
case $role in
    node)
        unit=worker programs=(vps-snapshots-worker)
        packages=(libvirt-daemon-system qemu-utils libvirt-dev pkg-config gcc python3-dev)
        ;;
    front-end) unit=api programs=(vps-snapshots-api vps-snapshots) packages=() ;;
    *) die "say what this machine is: node or front-end" ;;
esac
extra=${2:-}
case $extra in
    '' | tracing) ;;
    *) die "$extra: the one extra is tracing" ;;
esac
[ "$(id -u)" -eq 0 ] || die "must be root"
packages+=(python3-venv)

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "packages: ${missing[*]}"
    apt-get -q update
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
fi

home=/opt/vps-snapshots
say "programs: $home"
[ -x "$home/bin/pip" ] || python3 -m venv --clear "$home"
# what is there is upgraded with the rest: its parts must fit together
if "$home/bin/pip" show -q opentelemetry-sdk 2>/dev/null; then extra=tracing; fi
"$home/bin/pip" install -q --disable-pip-version-check --require-hashes -r deploy/lock/build.txt
"$home/bin/pip" install -q --no-build-isolation --require-hashes -r "deploy/lock/$role.txt"
if [ -n "$extra" ]; then "$home/bin/pip" install -q --no-build-isolation --require-hashes -r "deploy/lock/$extra.txt"; fi
"$home/bin/pip" install -q --no-build-isolation --no-deps --force-reinstall .

ln -sf "${programs[@]/#/$home/bin/}" /usr/local/bin/

settings=/etc/vps-snapshots/$unit.toml
if [ -e "$settings" ]; then
    say "settings: $settings, as it was"
else
    say "settings: $settings, from the example: edit it"
    install -D -m 600 "deploy/examples/$unit.toml" "$settings"
fi
install -D -m 644 "deploy/systemd/vps-snapshots-$unit.service" "/etc/systemd/system/vps-snapshots-$unit.service"
if [ "$role" = node ]; then
    install -D -m 644 deploy/systemd/libvirtd.conf /etc/systemd/system/libvirtd.service.d/vps-snapshots.conf
    install -D -m 755 deploy/libvirt/hook.sh /etc/libvirt/hooks/qemu.d/vps-snapshots
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
say "done; next: systemctl enable --now vps-snapshots-$unit"
