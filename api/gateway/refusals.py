"""What becomes of a claim that does not fit what the trusted side knows."""

import time

import structlog

from api.gateway.metrics import Metrics

QUIET_SECONDS = 60.0  # between two lines about one node and reason: a node can claim much in a minute

log = structlog.stdlib.get_logger()


class Refusals:
    """Counts and logs refused claims. Nothing else follows from them: a refused claim changes nothing."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._quiet_until: dict[tuple[str, str], float] = {}

    def refused(self, node: str, call: str, reason: str) -> None:
        """`reason`: one of a few words, with `_` between them."""
        self._metrics.claim_refused(reason)
        now = time.monotonic()
        if now >= self._quiet_until.get((node, reason), 0.0):
            self._quiet_until[node, reason] = now + QUIET_SECONDS
            log.warning("gateway.claim_refused", node=node, call=call, reason=reason)
