"""Handles claims that contradict what the trusted side knows."""

import time

import structlog

from api.gateway.metrics import Metrics

QUIET_SECONDS = 60.0  # minimum interval between log lines for one node and reason: a node can make many claims a minute

log = structlog.stdlib.get_logger()


class Refusals:
    """Counts and logs refused claims. A refused claim changes nothing."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._quiet_until: dict[tuple[str, str], float] = {}

    def refused(self, node: str, call: str, reason: str) -> None:
        """`reason`: one of REASONS, in snake_case."""
        self._metrics.claim_refused(reason)
        now = time.monotonic()
        if now >= self._quiet_until.get((node, reason), 0.0):
            self._quiet_until[node, reason] = now + QUIET_SECONDS
            log.warning("gateway.claim_refused", node=node, call=call, reason=reason)
