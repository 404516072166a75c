call() {
    curl -sSL --fail-with-body -H @- -H 'Content-Type: application/json' "$@" <<<"Authorization: Bearer $TOKEN"
    local code=$?
    echo
    return $code
}
start() {  # prints the response, and keeps the paths that its headers name: of the snapshot and of the job
    snapshot='' job=''
    local answer code paths
    answer=$(call -w '\n%header{location} %header{operation-location}' "$@")
    code=$?
    echo "${answer%$'\n'*}"
    [ $code = 0 ] || return $code
    paths=${answer##*$'\n'}
    snapshot=${paths% *} job=${paths#* }
}
follow() {  # polls the job until it has ended; fails unless the job has completed
    local answer
    for _ in $(seq 600); do
        answer=$(call "$URL${job:?no job was started}") || { echo "$answer"; return 1; }
        case $answer in
            *'"state": "completed"'*) echo "$answer"; return ;;
            *'"state": "failed"'*) echo "$answer"; return 1 ;;
        esac
        sleep 1
    done
    return 1
}

start "$URL/api/v1/snapshots/" -d '{"server_id": 12345, "name": "'"snapshot-$(date +%s)"'", "description": "Before the update"}' &&
    follow &&
    call "$URL/api/v1/snapshots/?server_id=12345" &&
    start -X POST "$URL${snapshot}restore/" &&
    follow &&
    call -X DELETE "$URL$snapshot" -w '%{http_code}'
