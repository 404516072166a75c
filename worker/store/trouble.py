"""What an error of Redis says of a command: whether it was done, and whether Redis takes writes at all."""

import re

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

FULL, REPLICA, DISK, ALONE = "OOM", "READONLY", "MISCONF", "NOREPLICAS"
CAUSES = (FULL, REPLICA, DISK, ALONE)  # the first word of Redis's answer to a write that it refuses
# redis-py keeps the word of those that have no class of their own, and adds the command if it was in a pipeline
_BEGINS = re.compile(rf"(?:Command # .* caused error: \(['\"])?({'|'.join(CAUSES)}) ", re.DOTALL)


class AnswerLost(RedisError):
    """The command was sent and no answer came: it may have been done."""


class CutOff(AnswerLost, RedisConnectionError):
    """The connection ended before the answer."""


class TooSlow(AnswerLost, RedisTimeoutError):
    """The answer did not come in time."""


class NotCopied(AnswerLost):
    """The command was done, and too few replicas have it: a failover could lose it."""


class NotSent(RedisConnectionError):
    """The connection was closed before the command was sent."""


def lost(error: Exception) -> AnswerLost | None:
    """The error of a command that was sent, as one of these; None if it is an answer of Redis."""
    # exactly: the answers LOADING and "max number of clients reached" are subclasses
    if type(error) is RedisConnectionError:
        return CutOff(str(error))
    return TooSlow(str(error)) if type(error) is RedisTimeoutError else None


def may_respond(error: BaseException | None) -> bool:
    """Whether Redis can be expected to answer the next command: it has answered this one, or the connection was cut."""
    return isinstance(error, ResponseError | CutOff)


def why_read_only(error: BaseException) -> str | None:
    """The cause, one of CAUSES; None if the error is another one."""
    if isinstance(error, OutOfMemoryError):
        return FULL
    if isinstance(error, ReadOnlyError):
        return REPLICA
    found = _BEGINS.match(str(error)) if isinstance(error, ResponseError) else None
    return found[1] if found else None
