call() { curl -sS --fail-with-body -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -D headers.txt "$@" && echo; }
header() { tr -d '\r' <headers.txt | sed -n "s/^$1: //p"; }
follow() {  # polls the job of the last response until it has ended
    job=$(header Operation-Location)
    [ -n "$job" ] && for _ in $(seq 600); do
        call "$URL$job" | grep -E '"state": "(completed|failed)"' && return || sleep 1
    done
}

call "$URL/api/v1/snapshots/" -d '{"server_id": 12345, "name": "'"snapshot-$(date +%s)"'", "description": "Before the update"}'
snapshot=$(header Location)
follow
call "$URL/api/v1/snapshots/?server_id=12345"
call -X POST "$URL${snapshot}restore/"
follow
call -X DELETE "$URL$snapshot" -w '%{http_code}'
