#!/usr/bin/env bash
# Installs this checkout on a production machine: deploy/install.sh node | front-end | gateway [tracing]     (as root, on Debian 12 or 13)
#
# Installs Debian packages, the programs in their own venv in /opt/vps-snapshots (from the lock, with hashes), the unit, and
# the example settings if there are none yet. Starts nothing. Run it again to upgrade, then restart the unit.
set -euo pipefail
umask 022 # programs that the service's user can run, and nobody but root can write
cd "$(dirname "$0")/.."

say() { printf 'install: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

role=${1:-}
case $role in
    node)
        unit=worker lock=node programs=(vps-snapshots-worker)
        packages=(libvirt-daemon-system qemu-utils libvirt-dev pkg-config gcc python3-dev)
        ;;
    front-end) unit=api lock=front-end programs=(vps-snapshots-api vps-snapshots) packages=(curl) ;;
    gateway) unit=gateway lock=front-end programs=(vps-snapshots-gateway) packages=() ;;
    *) die "usage: deploy/install.sh node | front-end | gateway [tracing]" ;;
esac
extra=${2:-}
case $extra in
    '' | tracing) ;;
    *) die "unknown extra $extra; the only one is: tracing" ;;
esac
[ "$(id -u)" -eq 0 ] || die "run this as root"
packages+=(python3-venv)

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing Debian packages: ${missing[*]}"
    apt-get -q update
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
fi

home=/opt/vps-snapshots
say "installing the programs in $home"
# also upgrade an installed extra, because the versions must match
if compgen -G "$home/lib/python*/site-packages/opentelemetry_sdk-*" >/dev/null; then extra=tracing; fi
# made anew after an upgrade of Debian, too: its Python is another one, and does not find pip
"$home/bin/python" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$home"
"$home/bin/pip" install -q --disable-pip-version-check --require-hashes -r deploy/lock/build.txt
"$home/bin/pip" install -q --no-build-isolation --require-hashes -r "deploy/lock/$lock.txt"
if [ -n "$extra" ]; then "$home/bin/pip" install -q --no-build-isolation --require-hashes -r "deploy/lock/$extra.txt"; fi
"$home/bin/pip" install -q --no-build-isolation --no-deps --force-reinstall .

ln -sf "${programs[@]/#/$home/bin/}" /usr/local/bin/
"$home/bin/python" -m deploy.man /usr/local/share/man/man1 "${programs[@]}"

settings=/etc/vps-snapshots/$unit.toml
if [ -e "$settings" ]; then
    say "kept the settings in $settings"
else
    say "created $settings from the example: edit it"
    install -D -m 600 "deploy/examples/$unit.toml" "$settings"
fi
install -D -m 644 "deploy/systemd/vps-snapshots-$unit.service" "/etc/systemd/system/vps-snapshots-$unit.service"
if [ "$role" = front-end ]; then
    [ -e /etc/vps-snapshots/audit.toml ] || install -D -m 600 deploy/examples/audit.toml /etc/vps-snapshots/audit.toml
    install -D -m 644 -t /etc/systemd/system deploy/systemd/vps-snapshots-{api.socket,audit.service,backup.service,backup.timer}
fi
if [ "$role" = node ]; then
    install -D -m 644 deploy/systemd/libvirtd.conf /etc/systemd/system/libvirtd.service.d/vps-snapshots.conf
    install -D -m 755 deploy/libvirt/hook.sh /etc/libvirt/hooks/qemu.d/vps-snapshots
fi
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
units=vps-snapshots-$unit
if [ "$role" = front-end ]; then units="vps-snapshots-api.socket vps-snapshots-api vps-snapshots-audit"; fi
say "done; next, once the settings are edited: systemctl enable --now $units"
if [ "$role" = front-end ]; then say "and on one front end: systemctl enable --now vps-snapshots-backup.timer"; fi
