"""The store's call for each call of a node after `hello`."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from worker.store.nodes.claims import BegunJob, PublishedSnapshot, ReportedServer
from worker.store.nodes.node_store import NodeStore
from worker.store.nodes.protocol import told
from worker.store.outcome import Outcome
from worker.store.reports import JobReport, NodeFacts

# Each takes the call's message of `worker.store.nodes.protocol`.
ANSWERS: Mapping[str, Callable[[NodeStore, Any], Awaitable[Any]]] = {
    "take_lease": lambda node, ask: node.take_lease(seconds=ask.seconds),
    "lease_holder": lambda node, _: node.lease_holder(),
    "take": lambda node, ask: node.take(running=ask.running, free=ask.free, seconds=ask.seconds, begin=ask.begin),
    "stop_taking": lambda node, _: node.stop_taking(),
    "begin": lambda node, ask: node.begin(ask.job_id),
    "progress": lambda node, ask: node.progress(ask.job_id, ask.step, told(JobReport, ask.report)),
    "finish": lambda node, ask: node.finish(
        ask.job_id, told(Outcome, ask.outcome), told(JobReport, ask.report), ask.power
    ),
    "report": lambda node, ask: node.report(
        [told(ReportedServer, server) for server in ask.servers], ask.about and told(NodeFacts, ask.about)
    ),
    "publish": lambda node, ask: node.publish(
        ask.server_id,
        [told(PublishedSnapshot, snapshot) for snapshot in ask.snapshots],
        [told(BegunJob, job) for job in ask.begun],
    ),
    "known": lambda node, ask: node.known(ask.server_id, ask.on_disk),
    "lose": lambda node, ask: node.lose(ask.server_id, ask.snapshot_id),
    "regain": lambda node, ask: node.regain(ask.server_id, ask.snapshot_id, size_mb=ask.size_mb),
    "tell_findings": lambda node, ask: node.tell_findings(
        ask.server_id, [finding.model_dump() for finding in ask.findings]
    ),
    "republish": lambda node, _: node.republish(),
    "retry_deletes": lambda node, _: node.retry_deletes(),
}
