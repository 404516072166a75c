"""Work that repeats as long as the program runs."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

import structlog

QUIET_SECONDS = 60.0  # interval between lines about an error that lasts

log = structlog.stdlib.get_logger()


class Outage:
    """A transient error that each round of a loop may meet. It is logged when it begins, and every `quiet_seconds`
    while it lasts, because a loop may have many rounds each second."""

    def __init__(self, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self._quiet_until = -math.inf

    def tell(self, event: str, **fields: object) -> None:
        """Log a round that failed."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + self._quiet_seconds
            log.warning(event, **fields)

    def end(self) -> None:
        """Note a round that did not fail."""
        self._quiet_until = -math.inf


@contextmanager
def guarded(name: str, *but: type[Exception], **item: object) -> Iterator[None]:
    """Work on one of many items: an unexpected error is logged as `<name>.broke` with the fields `item`, and ends
    only the block. `but`: errors that the caller handles."""
    broke = f"{name}.broke"
    try:
        yield
    except but:
        raise
    except Exception:
        log.exception(broke, **item)


async def every(
    seconds: float,
    work: Callable[[], Awaitable[object]],
    *,
    name: str,
    expected: Mapping[type[Exception], str] | None = None,
    again_seconds: float | None = None,
    turned: Callable[[], None] = lambda: None,
) -> NoReturn:
    """Run `work` until cancelled, with a pause of `seconds` after each round. Errors of a round do not end the loop.

    `expected`: transient errors, and the log event for each; its `cause` is the error's own cause. They are logged as
    an `Outage`. Any other error is logged with its traceback as `<name>.broke`. `again_seconds`: the pause after a
    failed round, if not `seconds`. `turned` is called before each round.
    """
    expected = expected or {}
    broke = f"{name}.broke"
    outage = Outage()
    while True:
        pause = seconds
        turned()
        try:
            await work()
            outage.end()
        except tuple(expected) as error:
            event = next(event for kind, event in expected.items() if isinstance(error, kind))
            outage.tell(event, cause=str(error.__cause__))
            pause = again_seconds or seconds
        except Exception:
            log.exception(broke)
            pause = again_seconds or seconds
        await asyncio.sleep(pause)
