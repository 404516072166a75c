#!/usr/bin/env bash
# In a chroot, as root: inside.sh download | packages | checkout. See run.sh.
set -euo pipefail
cell=/run/cell
declare -A pids # of the programs, by name

redis=
# run.sh reads the output to its end, so it would wait for a program that is left
trap 'kill "${pids[@]}" $redis 2>/dev/null || true' EXIT
transcript=/srv/transcript
step() { # SECONDS is bash's: since the start
    printf '%s\n' "$*" >&2
    printf '\n### %s\n\nAfter %s s:\n\n' "$*" "$SECONDS" >>$transcript
}
shows() { # COMMAND...: into the transcript, with its output
    printf '    $ %s\n' "$*" >>$transcript
    "$@" 2>&1 | sed 's/^/    /' >>$transcript || die "$*"
}
die() { printf 'FAILED: %s\n' "$*" >&2; tail -n 20 $cell/*.log >&2 2>/dev/null || true; exit 1; }
holds() { "$@" || die "$*"; }
absent() { # PACKAGE...
    local package
    for package; do refuses "no packages found matching $package" dpkg-query -W "$package"; done
}
apt() { apt-get -q -y --no-install-recommends "$@" >>/var/log/apt-test.log 2>&1 || { tail -n 30 /var/log/apt-test.log >&2; exit 1; }; }
install() {
    printf '    $ apt-get install%s\n' "$(printf ' %s' "${@##*/}")" >>$transcript
    apt --allow-downgrades install "$@"
}
limit=60
# shellcheck source=tests/packages/shared.sh
. "$(dirname "$0")/shared.sh"
# Runs programs as the units do: without root, and with their own copy of the settings.
start() { # NAME COMMAND...
    local name=$1; shift
    setpriv --reuid=65534 --regid=65534 --clear-groups "$@" >>"$cell/$name.log" 2>&1 &
    pids[$name]=$!
}
start_api() {
    VPS_SNAPSHOTS_CALLS_PER_MINUTE=100000 start api vps-snapshots-api serve --config $cell/api.toml
}
start_gateway() {
    VPS_SNAPSHOTS_UNIX_SOCKET=$cell/gateway.sock start gateway vps-snapshots-gateway serve --config $cell/gateway.toml
}
start_worker() { # a job that runs at a stop goes on in the next worker after a second
    VPS_SNAPSHOTS_DRIVER=fake VPS_SNAPSHOTS_DRAIN_SECONDS=1 VPS_SNAPSHOTS_GATEWAY__URLS="[\"unix://$cell/gateway.sock\"]" \
        vps-snapshots-worker run --config /etc/vps-snapshots/worker.toml >>$cell/worker.log 2>&1 &
    pids[worker]=$!
}
stop() { # NAME...
    local name
    for name; do
        kill "${pids[$name]}"
        wait "${pids[$name]}" || die "$name ended with $?"
        unset "pids[$name]"
    done
}
stop_all() { stop "${!pids[@]}"; }
call() { curl -s -H "Authorization: Bearer $(cat $cell/token)" -H 'X-Account-Id: 77' "http://127.0.0.1:8080$1" "${@:2}"; }
can_create() { says '"id"' call /api/v1/snapshots/ -D $cell/headers -d "{\"server_id\": $server, \"name\": \"$name\"}"; }
is_completed() { says '"state": ?"completed"' call "$job"; }
revision_is() {
    for package in api worker cli; do
        case $(dpkg-query -W -f '${Version}' "vps-snapshots-$package") in *-"$1"~*) ;; *) die "$package is not of revision $1" ;; esac
    done
}
create() { # NAME SERVER
    name=$1 server=$2
    until_true can_create
    job=$(sed -n 's/^[Oo]peration-[Ll]ocation: *\(\/[^ \r]*\).*/\1/p' $cell/headers)
}
snapshot() { # NAME
    create "$1" 12345
    until_true is_completed
    printf '    # POST /api/v1/snapshots/ {"server_id": 12345, "name": "%s"}: accepted, then completed\n' "$name" >>$transcript
    list_snapshots
}
list_snapshots() {
    VPS_SNAPSHOTS_TOKEN_FILE=$cell/token shows vps-snapshots --account 77 snapshots
}

serve() {
    chmod 700 $cell && chown nobody $cell
    for name in api gateway; do cp /etc/vps-snapshots/$name.toml $cell/ && chown nobody $cell/$name.toml; done
    export VPS_SNAPSHOTS_REDIS__URL=unix://$cell/redis.sock
    start_redis
    vps-snapshots-api --config $cell/api.toml token create --name tier --service --permission snapshots:read \
        --permission snapshots:write >$cell/token
    vps-snapshots-api --config $cell/api.toml token create --name operator --service --permission operator >$cell/operator
    chmod 600 $cell/token $cell/operator
    vps-snapshots-gateway --config $cell/gateway.toml credential create node-1 >/etc/vps-snapshots/credential
    chmod 600 /etc/vps-snapshots/credential
}
start_redis() {
    redis-server --port 0 --unixsocket $cell/redis.sock --unixsocketperm 777 --aclfile /srv/users.acl --dir $cell >>$cell/redis.log &
    redis=$!
    until_true test -S $cell/redis.sock
}
start_cell() {
    start_worker
    start_gateway
    start_api
}

# A change of the release while a customer calls and a job is at work.
begin_load() {
    rm -f $cell/enough
    python3 /srv/customer.py http://127.0.0.1:8080 $cell/token 77 12346 $cell/enough >$cell/customer.log &
    pids[customer]=$!
    until_true has_rounds 1
}
has_rounds() { [ "$(wc -l <$cell/customer.log)" -ge "$1" ]; }
goes_on() { # the customer's jobs complete
    local rounds
    rounds=$(wc -l <$cell/customer.log)
    kill -0 "${pids[customer]}" || die "the customer has given up"
    until_true has_rounds $((rounds + 2)) # the first of them may have begun before
}
end_load() {
    touch $cell/enough
    wait "${pids[customer]}" || die "the customer ended with $?: $(cat $cell/customer.log)"
    unset 'pids[customer]'
    printf '    # a customer meanwhile: %s\n' "$(tail -n 1 $cell/customer.log)" >>$transcript
}
hold() { # NAME: a job whose guest is off, and which can go on only in another process of the worker
    printf '[{"effect": "snapshot_disk", "server_id": 12347, "seconds": 3600}]' >/var/lib/vps-snapshots/faults.json
    create "$1" 12347
    until_true is_at_work
}
is_at_work() {
    says '"step": ?"snapshotting"' curl -s -H "Authorization: Bearer $(cat $cell/operator)" \
        "http://127.0.0.1:8080/api/v1/ops/jobs/${job#/api/v1/jobs/}"
}
let_go() {
    rm /var/lib/vps-snapshots/faults.json
}
finishes() { # the job that was at work
    until_true is_completed
    printf '    # the job that was at work: completed by the other release\n' >>$transcript
    goes_on
}
restart() { # NAME
    stop "$1"
    "start_$1"
    goes_on
}
change_front() { # FOLDER
    install "$1"/vps-snapshots-api_*.deb "$1"/vps-snapshots-cli_*.deb
    goes_on # the running programs are of the other release, whose files are gone
}
change_node() { # FOLDER
    install "$1"/vps-snapshots-worker_*.deb
    goes_on
}
kill_worker() {
    { kill -9 "${pids[worker]}" && wait "${pids[worker]}" || true; } 2>/dev/null # bash tells of the kill
}

burn() {
    { kill -9 $redis && wait $redis || true; } 2>/dev/null # bash tells of the kill
    rm -rf $cell/dump.rdb $cell/appendonlydir $cell/redis.sock
}
is_back() {
    local listed
    listed=$(call /api/v1/snapshots/)
    for name in before-upgrade after-upgrade after-roll-back; do [[ $listed == *"\"$name\""* ]] || return 1; done
    says '"tier": *"gold"' call "/api/v1/snapshots/$labeled/"
}

others=(redis-server curl systemd) # what the test needs beside our packages
try_download() {
    apt update
    for folder in /srv/old /srv/new; do apt --download-only install "$folder"/*.deb "${others[@]}"; done
}
try_packages() {
    step "front end and command line: no libvirt, no compiler"
    install /srv/old/vps-snapshots-api_*.deb /srv/old/vps-snapshots-cli_*.deb
    absent libvirt0 gcc python3-libvirt
    vps-snapshots --help >/dev/null

    step "node: Debian's libvirt"
    install /srv/old/vps-snapshots-worker_*.deb "${others[@]}"
    absent gcc

    step "a snapshot"
    mkdir -p $cell
    serve
    start_cell
    snapshot before-upgrade

    step "upgrade under load: front end, gateway, then the node, with a job at work"
    begin_load
    hold during-upgrade
    change_front /srv/new
    restart api
    restart gateway
    change_node /srv/new
    let_go
    restart worker
    finishes
    end_load
    revision_is 2
    snapshot after-upgrade

    step "roll back under load: the node, whose worker is killed with a job at work, gateway, then the front end"
    begin_load
    hold during-roll-back
    change_node /srv/old
    let_go
    kill_worker
    start_worker
    finishes
    change_front /srv/old
    restart gateway
    restart api
    end_load
    revision_is 1
    snapshot after-roll-back

    step "upgrade with edited settings that the release changes, too"
    stop_all
    echo '# edited' >>/etc/vps-snapshots/api.toml
    refuses 'end of file on stdin at conffile prompt' apt-get -q -y install /srv/new/*.deb </dev/null # dpkg asks, and nobody answers
    install -o Dpkg::Options::=--force-confold /srv/new/*.deb
    revision_is 2
    holds grep -q '^# edited' /etc/vps-snapshots/api.toml
    holds test "$(grep -c '^# of the next release' /etc/vps-snapshots/api.toml)" = 0
    holds grep -q '^# of the next release' /etc/vps-snapshots/api.toml.dpkg-dist
    holds grep -q '^# of the next release' /etc/vps-snapshots/audit.toml # not edited
    [ "$(stat -c %a /etc/vps-snapshots/*.toml* | sort -u)" = 600 ] || die "settings are not private"
    look_at_files
    start_cell
    snapshot with-edited-settings
    holds says 'id="all-data-of-redis-is-lost"' curl -sf http://127.0.0.1:8080/ops/runbook/recover/

    step "a backup, then Redis loses all of its data"
    mkdir -m 700 /srv/backups
    [[ $(call /api/v1/snapshots/) =~ \"id\":\ ?([0-9]+) ]] || die "no snapshots"
    labeled=${BASH_REMATCH[1]}
    holds says gold call "/api/v1/snapshots/$labeled/" -X PATCH -d '{"protected": true, "labels": {"tier": "gold"}}'
    shows vps-snapshots-api --config /etc/vps-snapshots/api.toml backup /srv/backups
    stop api gateway # the worker runs on
    burn
    burned=$SECONDS
    start_redis

    step "restore"
    backup=$(ls /srv/backups/*.backup)
    shows vps-snapshots-api --config /etc/vps-snapshots/audit.toml restore --audit "$backup"
    shows vps-snapshots-api --config /etc/vps-snapshots/api.toml restore "$backup"
    start_gateway
    start_api
    until_true is_back
    printf '    # back %s s after the loss, with the labels, by the same token\n' $((SECONDS - burned)) >>$transcript
    snapshot after-restore
    stop_all
    kill $redis && wait $redis

    step "no removal while a job is unfinished, also with another state_dir"
    change_journal "INSERT INTO jobs VALUES ('x', '{}', 'x', '{}', 0, NULL, 0, 0)"
    refuses 'not removed: 1 jobs' dpkg --remove vps-snapshots-worker
    mv /var/lib/vps-snapshots /srv/state
    sed -i 's|^state_dir = .*|state_dir = "/srv/state"|' /etc/vps-snapshots/worker.toml
    refuses 'not removed: 1 jobs' dpkg --remove vps-snapshots-worker
    holds dpkg-query -W vps-snapshots-worker
    mv /srv/state /var/lib/vps-snapshots
    sed -i 's|^state_dir = .*|state_dir = "/var/lib/vps-snapshots"|' /etc/vps-snapshots/worker.toml
    change_journal "DELETE FROM jobs WHERE id = 'x'"

    step "remove and purge"
    dpkg --remove vps-snapshots-api vps-snapshots-worker vps-snapshots-cli >/dev/null
    holds test -e /etc/vps-snapshots/worker.toml -a -e /var/lib/vps-snapshots/journal.sqlite
    holds /etc/libvirt/hooks/qemu.d/vps-snapshots web-1 prepare begin - </dev/null 2>/dev/null
    touch /etc/vps-snapshots/{gateway.key,gateway.crt,redis-ca.crt,gateway-ca.crt} # as an operator does
    dpkg --purge vps-snapshots-api vps-snapshots-worker vps-snapshots-cli >/dev/null
    left=$(find /etc /usr /var/lib -path /var/lib/apt -prune -o -name '*vps-snapshots*' -print)
    [ -z "$left" ] || die "left after a purge: $left"
}
look_at_files() {
    local manual package program
    manual=$(for package in /srv/new/*.deb; do dpkg-deb --contents "$package"; done)
    for program in vps-snapshots{,-api,-gateway,-worker}; do
        [[ $manual == *"/usr/share/man/man1/$program.1.gz"* ]] || die "no manual page of $program"
    done
    bash -c '. /usr/share/bash-completion/completions/vps-snapshots && complete -p vps-snapshots' >/dev/null
    /usr/lib/vps-snapshots/worker/bin/python -I -c 'import libvirt, libvirt_qemu, libvirtaio; libvirt.getVersion()'
    refuses "No module named 'aiohttp'" /usr/lib/vps-snapshots/worker/bin/python -I -c 'import aiohttp'
    systemd-analyze verify --man=no /usr/lib/systemd/system/vps-snapshots-*
    [ -z "$(find /etc/systemd/system -name 'vps-snapshots-*')" ] || die "a unit is enabled before its settings are edited"
    [ -z "$(find /usr/lib/vps-snapshots -perm /022 ! -type l)" ] || die "users can write programs"
    /etc/libvirt/hooks/qemu.d/vps-snapshots web-1 prepare begin - <<<'<domain type="kvm"><name>web-1</name></domain>'
}
change_journal() {
    python3 -c 'import sqlite3, sys
with sqlite3.connect("/var/lib/vps-snapshots/journal.sqlite") as journal:
    journal.execute(sys.argv[1])' "$1"
}

try_checkout() {
    install_role front-end vps-snapshots-api vps-snapshots
    holds command -v curl >/dev/null # the page Install calls it, and a minimal Debian has none
    [ "$(stat -c %a /etc/vps-snapshots/*.toml | sort -u)" = 600 ] || die "settings are not private"

    mv /opt/vps-snapshots/lib/python3.* /opt/vps-snapshots/lib/python3.0 # after an upgrade of Debian, its Python looks elsewhere
    install_role gateway vps-snapshots-gateway # on the same machine

    rm -r /opt/vps-snapshots # a node is another machine: its lock has other versions
    install_role node vps-snapshots-worker
    /opt/vps-snapshots/bin/python -I -c 'import libvirt, libvirt_qemu, libvirtaio; libvirt.getVersion()'
    holds test -e /etc/systemd/system/libvirtd.service.d/vps-snapshots.conf
    /etc/libvirt/hooks/qemu.d/vps-snapshots web-1 prepare begin - <<<'<domain type="kvm"><name>web-1</name></domain>'
}
# Users can run its programs, and only root can change them and what root runs, whatever the umask was.
install_role() { # ROLE PROGRAM...
    local program tree
    bash /srv/checkout/deploy/install.sh "$1" >/var/log/install.log 2>&1 || { tail -n 20 /var/log/install.log >&2; exit 1; }
    for program in "${@:2}"; do
        setpriv --reuid=65534 --regid=65534 --clear-groups "$program" --help >/dev/null
    done
    for tree in /opt/vps-snapshots /usr/local /etc/vps-snapshots /etc/systemd/system /etc/libvirt; do
        [ ! -e $tree ] || [ -z "$(find $tree -perm /022 ! -type l ! -perm -1000)" ] || die "$1: users can write in $tree"
    done
    [ -z "$(find /opt/vps-snapshots ! -perm -004 ! -type l)" ] || die "$1: users cannot read all of /opt/vps-snapshots"
}

"try_$1"
