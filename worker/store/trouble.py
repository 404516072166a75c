"""Classifies errors of Redis: whether a command was executed, and whether Redis accepts writes."""

import re

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

FULL, REPLICA, DISK, ALONE = "OOM", "READONLY", "MISCONF", "NOREPLICAS"
CAUSES = (FULL, REPLICA, DISK, ALONE)  # the first word of Redis's error for a refused write
# redis-py keeps the word of errors without a class, and adds the command if it was in a pipeline
_BEGINS = re.compile(rf"(?:Command # .* caused error: \(['\"])?({'|'.join(CAUSES)}) ", re.DOTALL)


class AnswerLost(RedisError):
    """The command was sent, and no answer arrived: it may have been executed."""


class CutOff(AnswerLost, RedisConnectionError):
    """The connection ended before the answer."""


class TooSlow(AnswerLost, RedisTimeoutError):
    """The answer did not arrive in time."""


class NotCopied(AnswerLost):
    """The command was executed, but too few replicas have it: a failover could lose it."""


class NotSent(RedisConnectionError):
    """The connection was closed before the command was sent."""


def lost(error: Exception) -> AnswerLost | None:
    """Translate the error of a sent command to one of these; None if the error is Redis's answer."""
    # not isinstance: the answers LOADING and "max number of clients reached" are subclasses
    if type(error) is RedisConnectionError:
        return CutOff(str(error))
    return TooSlow(str(error)) if type(error) is RedisTimeoutError else None


def may_respond(error: BaseException | None) -> bool:
    """Whether Redis may answer the next command: it answered this one, or the connection was cut."""
    return isinstance(error, ResponseError | CutOff)


def why_read_only(error: BaseException) -> str | None:
    """Why Redis refuses writes, one of CAUSES; None for any other error."""
    if isinstance(error, OutOfMemoryError):
        return FULL
    if isinstance(error, ReadOnlyError):
        return REPLICA
    found = _BEGINS.match(str(error)) if isinstance(error, ResponseError) else None
    return found[1] if found else None
