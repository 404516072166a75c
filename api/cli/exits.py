"""How a command ends: its exit code, and what it says when it is not well."""

from enum import IntEnum


class Exit(IntEnum):
    """Scripts go by these: a number keeps its meaning."""

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
    Exit.OK: "done",
    Exit.REFUSED: "refused by the service, or in part, or the answer was no",
    Exit.USAGE: "wrong usage, or --yes is missing where nobody can be asked",
    Exit.NOT_FOUND: "there is no such job, node, server, snapshot or token",
    Exit.NOT_ALLOWED: "no token, a bad one, or it lacks the permission",
    Exit.UNREACHABLE: "the service, or the server's node, does not answer now, or asks to come later",
    Exit.JOB_FAILED: "the job failed; the server is as it was",
    Exit.STRANDED: "the job failed and its server is not as it was: a person must look",
    Exit.STILL_RUNNING: "not over within --max-wait; it goes on",
    Exit.INTERRUPTED: "Ctrl-C; what was begun goes on",
}


class Trouble(Exception):
    """The command ends with this exit code; the text is for the person who called it."""

    def __init__(self, exit_code: Exit, text: str) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Refused(Trouble):
    """The service said no, with its problem document."""

    def __init__(self, exit_code: Exit, text: str, *, code: str) -> None:
        super().__init__(exit_code, text)
        self.code = code


class Unreachable(Trouble):
    """No answer, or one that says to come again."""

    def __init__(self, text: str) -> None:
        super().__init__(Exit.UNREACHABLE, text)
