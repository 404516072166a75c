"""The resources of the API: the table of each one's calls, and how its handlers are created.

The routes, the API's document, its pages and the words of the audit log are generated from these lists.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from api.credentials import calls as credentials
from api.events import calls as events
from api.events.streams import Streams
from api.http.callers import Caller, Callers, Entering
from api.http.calls import Call, Table
from api.http.handling import Handler, called, entered
from api.jobs import calls as jobs
from api.operators import calls as operators
from api.operators import lookups
from api.operators.audit_words import AuditWords
from api.schedules import calls as schedules
from api.servers import calls as servers
from api.settings import ApiSettings
from api.snapshots import calls as snapshots
from api.webhooks import calls as webhooks
from api.webhooks.ssrf import Reach
from worker.store.access.credentials import Credentials
from worker.store.access.tokens import Token, Tokens
from worker.store.access.usage import TokenUses
from worker.store.customers.customer_store import CustomerStore
from worker.store.operators.operator_store import OperatorStore
from worker.store.schedules.schedules import Schedules
from worker.store.webhooks.webhooks import Webhooks


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects that handlers are created from. `now`: the time of the cell."""

    redis: Redis
    settings: ApiSettings
    now: Callable[[], datetime]
    callers: Callers
    streams: Streams
    store: CustomerStore
    operators: OperatorStore
    tokens: Tokens
    uses: TokenUses
    reach: Reach


Create = Callable[[Parts], object]


@dataclass(frozen=True)
class Resource:
    table: Table[Any]
    handlers: Callable[[Parts], Iterator[tuple[Call[Any], Handler]]]


def _entering(table: Table[Entering], create: Create) -> Resource:
    """Its scripts check the caller."""

    def handlers(parts: Parts) -> Iterator[tuple[Call[Any], Handler]]:
        resource = create(parts)
        return ((call, entered(call, resource, parts.callers)) for call in table.calls)

    return Resource(table, handlers)


def _of_customers(table: Table[Caller], create: Create) -> Resource:
    def handlers(parts: Parts) -> Iterator[tuple[Call[Any], Handler]]:
        resource = create(parts)
        return ((call, called(call, resource, parts.callers.identify)) for call in table.calls)

    return Resource(table, handlers)


def _of_operators(table: Table[Token], create: Create) -> Resource:
    def handlers(parts: Parts) -> Iterator[tuple[Call[Any], Handler]]:
        resource = create(parts)
        return ((call, called(call, resource, parts.callers.operator)) for call in table.calls)

    return Resource(table, handlers)


# in the order of the document
CUSTOMERS = (
    _entering(snapshots.call, lambda of: snapshots.SnapshotCalls(of.store, live=of.settings.live)),
    _entering(jobs.call, lambda of: jobs.JobCalls(of.store)),
    _of_customers(events.call, lambda of: events.EventCalls(of.streams, of.callers)),
    _entering(servers.call, lambda of: servers.ServerCalls(of.store, live=of.settings.live)),
    _of_customers(
        schedules.call,
        lambda of: schedules.ScheduleCalls(Schedules(of.redis, now=of.now), live=of.settings.live),
    ),
    _of_customers(webhooks.call, lambda of: webhooks.WebhookCalls(Webhooks(of.redis), reach=of.reach)),
)
OPERATORS = (
    _of_operators(
        operators.call, lambda of: operators.OperatorCalls(of.operators, of.tokens, of.uses, words=AUDIT_WORDS)
    ),
    _of_operators(lookups.call, lambda of: lookups.LookupCalls(of.operators)),
    _of_operators(credentials.call, lambda of: credentials.CredentialCalls(Credentials(of.redis))),
    _of_operators(jobs.ops_call, lambda of: jobs.OpsJobCalls(of.operators, runbook_url=of.settings.runbook_url)),
    _of_operators(servers.ops_call, lambda of: servers.OpsServerCalls(of.operators, of.store)),
    _of_operators(schedules.ops_call, lambda of: schedules.OpsScheduleCalls(of.operators)),
    _of_operators(events.ops_call, lambda of: events.EventCalls(of.streams, of.callers)),
)
RESOURCES = (*CUSTOMERS, *OPERATORS)

CUSTOMERS_CALLS: tuple[Call[Any], ...] = tuple(call for resource in CUSTOMERS for call in resource.table.calls)
OPERATORS_CALLS: tuple[Call[Any], ...] = tuple(call for resource in OPERATORS for call in resource.table.calls)
CALLS = (*CUSTOMERS_CALLS, *OPERATORS_CALLS)

AUDIT_WORDS: AuditWords = AuditWords(CALLS)
