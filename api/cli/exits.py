"""Exit codes and errors."""

from enum import IntEnum
from typing import Self


class Exit(IntEnum):
    """Exit codes and their meanings for --help. The numbers never change: scripts rely on them."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    OK = 0, "success"
    REFUSED = 1, "refused by the service, at least in part, or not confirmed"
    USAGE = 2, "wrong usage, or no terminal to confirm on and no --yes"
    NOT_FOUND = 3, "no such job, node, server, snapshot or token"
    NOT_ALLOWED = 4, "no token, an invalid token, or a missing permission"
    UNREACHABLE = 5, "the service or the server's node is not responding, or asks to retry later"
    JOB_FAILED = 6, "the job failed; the server is as it was before"
    STRANDED = 7, "the job failed and left the server stranded; an operator must repair it"
    STILL_RUNNING = 8, "still running after --max-wait; it continues"
    INTERRUPTED = 130, "Ctrl-C; jobs that have started continue"


class CliError(Exception):
    """Ends the command with this exit code and this text."""

    def __init__(self, exit_code: Exit, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Refused(CliError):
    """The service refused the request. `code`: the code of the problem document, '' if there is none."""

    def __init__(self, exit_code: Exit, text: str, *, code: str) -> None:
        super().__init__(exit_code, text)
        self.code = code


class OperatorsOnly(CliError):
    """A customer's token cannot do this."""

    def __init__(self, text: str) -> None:
        super().__init__(Exit.NOT_ALLOWED, text)


class Unreachable(CliError):
    """No response, or one that asks to retry later."""

    def __init__(self, text: str) -> None:
        super().__init__(Exit.UNREACHABLE, text)
