call() {
    curl -sS --fail-with-body -H @- -H 'Content-Type: application/json' "$@" <<<"Authorization: Bearer $TOKEN"
    local code=$?
    echo
    return $code
}
start() {  # prints the response, and keeps the paths that its headers name: of the snapshot and of the job
    snapshot='' job=''
    paths=$(call -o /dev/stderr -w '%header{location} %header{operation-location}' "$@")
    local code=$?
    echo
    [ $code = 0 ] && snapshot=${paths% *} && job=${paths#* }
}
follow() {  # polls the job until it has ended
    [ -n "$job" ] || return
    for _ in $(seq 600); do
        call "$URL$job" | grep -E '"state": "(completed|failed)"' && return || sleep 1
    done
}

start "$URL/api/v1/snapshots/" -d '{"server_id": 12345, "name": "'"snapshot-$(date +%s)"'", "description": "Before the update"}'
follow
call "$URL/api/v1/snapshots/?server_id=12345"
start -X POST "$URL${snapshot}restore/"
follow
call -X DELETE "$URL$snapshot" -w '%{http_code}'
