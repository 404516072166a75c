# shellcheck shell=bash disable=SC2154  # inside.sh and machine.sh source it, and define `die` and `limit`, in seconds

until_true() { # COMMAND...
    for _ in $(seq $((limit * 10))); do if "$@"; then return; fi; sleep 0.1; done
    die "not within $limit s: $*"
}
# The command's output has the pattern. It reads all of the output: with `| grep -q`, curl would fail of a pipe that closes early.
says() { # PATTERN COMMAND...
    local output
    output=$("${@:2}") && grep -qE "$1" <<<"$output"
}
refuses() { # PATTERN COMMAND...: the command fails, and its messages have the pattern
    local output
    if output=$("${@:2}" 2>&1); then die "it has succeeded: ${*:2}"; fi
    grep -qE "$1" <<<"$output" || die "it has failed of something else: ${*:2}: $output"
}
