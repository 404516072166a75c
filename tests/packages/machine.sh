#!/usr/bin/env bash
# Runs as root in a virtual machine booted by systemd: enables the units as an operator does. See `boot` in run.sh.
set -euo pipefail
export VPS_SNAPSHOTS_URL=http://127.0.0.1:8080
etc=/etc/vps-snapshots
disk=/var/lib/libvirt/images/web.qcow2

step() { printf 'machine: %s\n' "$*"; }
die() {
    printf 'machine: FAILED: %s\n' "$*"
    systemctl --no-pager --full status 'vps-snapshots-*' redis-server libvirtd 2>&1 | tail -n 60
    journalctl --no-pager -n 120 -u 'vps-snapshots-*'
    exit 1
}
trap 'die "line $LINENO"' ERR
limit=120
# shellcheck source=tests/packages/shared.sh
. "$(dirname "$0")/shared.sh"
is_active() { systemctl is-active --quiet "$1"; }
main_pid() { systemctl show -p MainPID --value "$1"; }
has_restarted() { [ "$(systemctl show -p NRestarts --value "$1")" -ge "$2" ]; }
is_new() { [ "$(main_pid "$1")" != "$2" ] && [ "$(main_pid "$1")" != 0 ] && is_active "$1"; }
call() { curl -sS --max-time 300 -H "Authorization: Bearer $(cat /root/token)" -H 'X-Account-Id: 77' "$VPS_SNAPSHOTS_URL$1" "${@:2}"; }
is_reachable() { says '"reachable": ?true' call /api/v1/servers/12345/; }
completed() { # NAME: of a create
    local job
    job=$(call /api/v1/snapshots/ -D - -o /root/body -d "{\"server_id\": 12345, \"name\": \"$1\"}" |
        sed -n 's/^[Oo]peration-[Ll]ocation: *\(\/[^ \r]*\).*/\1/p')
    [ -n "$job" ] || die "$1: $(cat /root/body)"
    until_true is_over "$job"
    says '"state": ?"completed"' call "$job" || die "$1: $(call "$job")"
}
is_over() { says '"state": ?"(completed|failed)"' call "$1"; }
password() { sed -n "s/^user $1 .* >\([^ ]*\) .*/\1/p" /etc/redis/users.acl; }

step "systemd $(systemctl show -p Version --value)"

step "Redis, as redis.conf and users.acl are shipped"
install -m 640 -o redis -g redis /srv/deploy/redis/redis.conf /srv/deploy/redis/users.acl /etc/redis/
python3 /srv/deploy/redis/passwords.py /etc/redis/users.acl
sed -i 's/^bind .*/bind 127.0.0.1/' /etc/redis/redis.conf
systemctl restart redis-server
for file in api audit gateway; do
    sed -i "s|^url = .*|url = \"redis://127.0.0.1:6379/0\"|; s|^password = .*|password = \"$(password $file)\"|" $etc/$file.toml
done

step "front end, audit log and gateway"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=gateway -addext subjectAltName=IP:127.0.0.1 \
    -keyout $etc/gateway.key -out $etc/gateway.crt 2>/dev/null
systemctl enable --now vps-snapshots-api.socket vps-snapshots-api vps-snapshots-audit vps-snapshots-gateway
curl -fsS $VPS_SNAPSHOTS_URL/readyz
vps-snapshots-api --config $etc/api.toml token create --name tier --service \
    --permission snapshots:read --permission snapshots:write >/root/token
install -m 600 /dev/null $etc/credential
vps-snapshots-gateway --config $etc/gateway.toml credential create node-1 >$etc/credential

step "node: a real libvirtd, qcow2 and QEMU"
systemctl start libvirtd
qemu-img create -q -f qcow2 $disk 64M
cat >/root/web.xml <<X
<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/></features>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='$disk'/>
<target dev='vda' bus='virtio'/></disk></devices></domain>
X
virsh -q define /root/web.xml
sed -i "s|^urls = .*|urls = [\"wss://127.0.0.1:7443\"]\ntls_ca_file = \"$etc/gateway.crt\"|; s|^grace_seconds = .*|grace_seconds = 5|" \
    $etc/worker.toml
vps-snapshots-worker adopt --config $etc/worker.toml web --server-id 12345 --account 77
systemctl enable --now vps-snapshots-worker
until_true is_reachable

step "snapshots of a server that is off, and of one that runs"
completed first
virsh -q start web
completed second
[ "$(virsh domstate web)" = running ] || die "the server is $(virsh domstate web)"
[ "$(qemu-img snapshot -U -l $disk | grep -c vps-)" = 2 ] || die "$(qemu-img snapshot -U -l $disk)"

begin_calls() { # one after the other, until end_calls; the first has gone through
    rm -f /root/enough
    : >/root/calls # a line for each
    (while [ ! -e /root/enough ]; do { call /api/v1/snapshots/ -o /dev/null -f && echo >>/root/calls; } || exit 1; done) &
    calls=$!
    until_true has_calls 1
}
has_calls() { # NUMBER; dies if the calls have ended
    kill -0 $calls || die "a call failed"
    [ "$(wc -l </root/calls)" -ge "$1" ]
}
end_calls() { # WHAT
    local former
    former=$(wc -l </root/calls)
    until_true has_calls $((former + 1))
    touch /root/enough
    wait $calls || die "a call failed during $1"
    step "$(wc -l </root/calls) calls went through"
}

step "a restart of the front end: no call is refused"
pid=$(main_pid vps-snapshots-api)
begin_calls
systemctl restart vps-snapshots-api
until_true is_new vps-snapshots-api "$pid"
end_calls "the restart"

step "an upgrade of the packages: no call is refused, and what was stopped stays stopped"
declare -A before
for unit in api audit gateway; do before[$unit]=$(main_pid "vps-snapshots-$unit"); done
opened=$(systemctl show -p ActiveEnterTimestampMonotonic --value vps-snapshots-api.socket)
systemctl stop vps-snapshots-worker # for a repair
begin_calls
dpkg --force-confold -i /srv/new/*.deb >/dev/null
for unit in api audit gateway; do until_true is_new "vps-snapshots-$unit" "${before[$unit]}"; done
end_calls "the upgrade"
[ "$(systemctl show -p ActiveEnterTimestampMonotonic --value vps-snapshots-api.socket)" = "$opened" ] || die "the socket was opened again"
if is_active vps-snapshots-worker; then die "the upgrade has started the worker"; fi
systemctl start vps-snapshots-worker
until_true is_reachable

step "addresses that do not exist yet, as at boot"
mkdir -p /run/systemd/system/vps-snapshots-api.socket.d
printf '[Socket]\nListenStream=10.20.0.5:8080\n' >/run/systemd/system/vps-snapshots-api.socket.d/address.conf
install -D -m 644 /srv/deploy/redis/at-boot.conf /etc/systemd/system/redis-server.service.d/vps-snapshots.conf
sed -i 's/^bind .*/bind 127.0.0.1 10.20.0.5/' /etc/redis/redis.conf
systemctl daemon-reload
systemctl stop vps-snapshots-api vps-snapshots-api.socket redis-server
systemctl start vps-snapshots-api.socket
systemctl start --no-block redis-server
until_true has_restarted redis-server 6 # systemd's default limit is five
ip address add 10.20.0.5/32 dev lo
until_true is_active redis-server
systemctl start vps-snapshots-api
until_true curl -fsS --max-time 10 http://10.20.0.5:8080/readyz
until_true is_reachable

for unit in api audit gateway worker; do
    step "vps-snapshots-$unit is killed, and hangs"
    pid=$(main_pid "vps-snapshots-$unit")
    kill -9 "$pid"
    until_true is_new "vps-snapshots-$unit" "$pid"
    pid=$(main_pid "vps-snapshots-$unit")
    mkdir -p "/run/systemd/system/vps-snapshots-$unit.service.d"
    printf '[Service]\nWatchdogSec=15\n' >"/run/systemd/system/vps-snapshots-$unit.service.d/soon.conf"
    systemctl daemon-reload
    systemctl restart "vps-snapshots-$unit"
    pid=$(main_pid "vps-snapshots-$unit")
    kill -STOP "$pid"
    until_true is_new "vps-snapshots-$unit" "$pid"
done
until_true is_reachable
completed third

step "a backup"
systemctl start vps-snapshots-backup
ls /var/lib/vps-snapshots-backup/*.backup >/dev/null

step "exposure"
for unit in api audit gateway worker; do
    systemd-analyze security --no-pager "vps-snapshots-$unit" | tail -n 1
done

step "the worker stops before libvirt-guests, and runs again when its removal is refused"
virsh -q destroy web
systemctl start libvirt-guests
units="libvirt-guests.service vps-snapshots-worker.service" # one transaction stops both, as at a shutdown
printf '[Unit]\nConflicts=%s\nAfter=%s\n' "$units" "$units" >/run/systemd/system/down.target
systemctl daemon-reload
systemctl start down.target
stopped=$(systemctl show -p InactiveEnterTimestampMonotonic --value vps-snapshots-worker)
[ "$(systemctl show -p ActiveExitTimestampMonotonic --value libvirt-guests)" -ge "$stopped" ] || die "libvirt-guests did not wait"
systemctl stop down.target
systemctl start vps-snapshots-worker
until_true is_reachable
sed 's|^state_dir = .*|state_dir = |' -i.good $etc/worker.toml
pid=$(main_pid vps-snapshots-worker)
refuses 'not removed: unknown jobs' dpkg --remove vps-snapshots-worker # nobody knows where its journal is
mv $etc/worker.toml.good $etc/worker.toml
until_true is_new vps-snapshots-worker "$pid"

step "all stop cleanly, and were denied nothing"
systemctl stop vps-snapshots-worker vps-snapshots-gateway vps-snapshots-audit vps-snapshots-api vps-snapshots-api.socket
[ -z "$(systemctl list-units --failed --plain --no-legend 'vps-snapshots-*')" ] || die "$(systemctl list-units --failed --no-pager)"
denied=$(journalctl --no-pager -b | grep -iE 'seccomp|operation not permitted|permission denied|Traceback' | grep vps-snapshots || true)
[ -z "$denied" ] || die "$denied"
step "all tests passed"
