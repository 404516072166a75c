"""What several benchmarks measure in the same way."""

import math
import time
from collections.abc import Awaitable, Sequence


async def took(call: Awaitable[object]) -> float:
    """The milliseconds of a call."""
    began = time.perf_counter()
    await call
    return 1000 * (time.perf_counter() - began)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
