"""Shell completion of IDs and names, from the service."""

from collections.abc import Awaitable, Callable

import typer

from api.cli.access import Options, access
from api.cli.client import PAGE_MAX, Body, Client
from api.cli.connection import connected
from api.cli.exits import CliError
from api.cli.later import asyncio
from api.cli.profiles import profile

_SECONDS = 2.0  # the user waits after pressing Tab
_OFFERED = 50

Offer = tuple[str, str]


def _completing(
    collect: Callable[[Client], Awaitable[Body]], offer: Callable[[Body], Offer]
) -> Callable[[typer.Context, str], list[Offer]]:
    async def ask(context: typer.Context) -> list[Offer]:
        given = context.find_root().params
        options = Options(
            url=given["url"],
            token_file=given["token_file"],
            account=given["account"],
            timeout_seconds=_SECONDS,
            profile=lambda: profile(given["name"]),
        )
        async with connected(access(options)) as client:
            return [offer(one) for one in (await collect(client))["results"]]

    def complete(context: typer.Context, incomplete: str) -> list[Offer]:
        try:
            offers = asyncio.run(ask(context))
        except (CliError, LookupError, TypeError):  # an error cannot be shown while the user types
            return []
        return [offer for offer in offers if offer[0].startswith(incomplete)]

    return complete


nodes = _completing(
    lambda client: client.collect("ops/nodes/", {}, limit=PAGE_MAX),
    lambda node: (node["name"], f"{node['queued']} queued"),
)
jobs = _completing(
    lambda client: client.either(
        lambda: client.collect("ops/jobs/", {}, limit=_OFFERED),
        lambda: client.collect_pages("jobs/", {}, limit=_OFFERED),
    ),
    lambda job: (job["id"], f"{job['state']} {job['kind']}"),
)
servers = _completing(
    lambda client: client.collect("ops/servers/", {}, limit=_OFFERED),
    lambda server: (str(server["id"]), server["name"]),
)
snapshots = _completing(
    lambda client: client.collect_pages("snapshots/", {}, limit=_OFFERED),
    lambda snapshot: (str(snapshot["id"]), snapshot["name"]),
)
