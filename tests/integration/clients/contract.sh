# The contract's four calls at a shell prompt: contract.sh URL TOKEN SERVER_ID
set -euo pipefail
url=$1/api/v1 token=$2 server=$3

call() { curl -sS -X "$1" "$url/$2" -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -D head -o body "${@:3}"; }
answered() { printf '"%s": [%s, %s]' "$1" "$(sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p' head)" "$([ -s body ] && cat body || echo null)"; }
follow() {
  local job
  job=$(tr -d '\r' <head | sed -n 's/^X-Job-Id: //p')
  until call GET "jobs/$job/" && grep -qE '"state": "(completed|failed)"' body; do sleep 0.05; done
}

printf '{'
call POST snapshots/ -d "{\"server_id\": $server, \"name\": \"by-hand\"}"
answered create; [[ $(cat body) =~ \"id\":\ ([0-9]+) ]]; id=${BASH_REMATCH[1]}; follow
call GET "snapshots/?server_id=$server"
printf ', '; answered list
call POST "snapshots/$id/restore/"
printf ', '; answered restore; follow
call DELETE "snapshots/$id/"
printf ', '; answered delete
printf '}'
