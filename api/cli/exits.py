"""Exit codes and errors."""

from enum import IntEnum


class Exit(IntEnum):
    """Scripts rely on these numbers; they never change."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    UNREACHABLE = 5
    JOB_FAILED = 6
    STRANDED = 7
    STILL_RUNNING = 8
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "success",
    Exit.REFUSED: "refused by the service, at least in part, or not confirmed",
    Exit.USAGE: "wrong usage, or no terminal to confirm on and no --yes",
    Exit.NOT_FOUND: "no such job, node, server, snapshot or token",
    Exit.NOT_ALLOWED: "no token, an invalid token, or a missing permission",
    Exit.UNREACHABLE: "the service or the server's node is not responding, or asks to retry later",
    Exit.JOB_FAILED: "the job failed; the server is as it was before",
    Exit.STRANDED: "the job failed and left the server stranded; manual action needed",
    Exit.STILL_RUNNING: "still running after --max-wait; it continues",
    Exit.INTERRUPTED: "Ctrl-C; jobs that have started continue",
}


class CliError(Exception):
    """Ends the command with this exit code and this text."""

    def __init__(self, exit_code: Exit, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Refused(CliError):
    """The service refused the request. `code`: of its problem document, else ''."""

    def __init__(self, exit_code: Exit, text: str, *, code: str) -> None:
        super().__init__(exit_code, text)
        self.code = code


class Unreachable(CliError):
    """No response, or one that asks to retry later."""

    def __init__(self, text: str) -> None:
        super().__init__(Exit.UNREACHABLE, text)
