"""Shell completion of ids and names, from the service."""

import asyncio
from collections.abc import Awaitable, Callable

import typer

from api.cli.access import Options, access
from api.cli.client import Client
from api.cli.connection import connected
from api.cli.exits import CliError

_SECONDS = 2.0  # the user waits after pressing Tab
_OFFERED = 50

Offer = tuple[str, str]


def nodes(context: typer.Context, incomplete: str) -> list[Offer]:
    async def ask(client: Client) -> list[Offer]:
        listed = await client.collect("ops/nodes/", {}, limit=500)
        return [(node["name"], f"{node['queued']} queued") for node in listed["results"]]

    return _offered(context, incomplete, ask)


def jobs(context: typer.Context, incomplete: str) -> list[Offer]:
    async def ask(client: Client) -> list[Offer]:
        listed = await client.either(
            lambda: client.collect("ops/jobs/", {}, limit=_OFFERED),
            lambda: client.collect_pages("jobs/", {}, limit=_OFFERED),
        )
        return [(job["id"], f"{job['state']} {job['kind']}") for job in listed["results"]]

    return _offered(context, incomplete, ask)


def servers(context: typer.Context, incomplete: str) -> list[Offer]:
    async def ask(client: Client) -> list[Offer]:
        listed = await client.collect("ops/servers/", {}, limit=_OFFERED)
        return [(str(server["id"]), server["name"]) for server in listed["results"]]

    return _offered(context, incomplete, ask)


def snapshots(context: typer.Context, incomplete: str) -> list[Offer]:
    async def ask(client: Client) -> list[Offer]:
        listed = await client.collect_pages("snapshots/", {}, limit=_OFFERED)
        return [(str(snapshot["id"]), snapshot["name"]) for snapshot in listed["results"]]

    return _offered(context, incomplete, ask)


def _offered(context: typer.Context, incomplete: str, ask: Callable[[Client], Awaitable[list[Offer]]]) -> list[Offer]:
    try:
        offers = asyncio.run(_ask(context, ask))
    except (CliError, LookupError, TypeError):  # an error can't be shown while a line is typed
        return []
    return [offer for offer in offers if offer[0].startswith(incomplete)]


async def _ask(context: typer.Context, ask: Callable[[Client], Awaitable[list[Offer]]]) -> list[Offer]:
    given = context.find_root().params
    options = Options(
        url=given["url"], token_file=given["token_file"], account=given["account"], timeout_seconds=_SECONDS
    )
    async with connected(access(options)) as client:
        return await ask(client)
