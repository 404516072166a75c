"""IDs from what people type: the first digits of a job's ID, the name of a server, snapshot or token.

Each text is looked up once in a command, so that the command changes the object that its question named: while the
question waits, a name can be given to another object.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

from api.cli.client import Body, Client, Query
from api.cli.exits import CliError, Exit

_JOB_ID, _DIGITS = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{8,31}")
_TOKEN_ID = re.compile(r"[0-9a-f]{12}")
_NUMBER = re.compile(r"[1-9][0-9]{0,18}")
LISTED = 500  # how many of an account's latest jobs and snapshots are searched


async def job(client: Client, text: str) -> str:
    """The ID of the job that begins with these digits, at least 8. Any other text is passed on for the service to
    refuse. Raises CliError."""
    digits = text.lower()
    if not _DIGITS.fullmatch(digits):
        return digits if _JOB_ID.fullmatch(digits) else text

    async def of_account() -> list[str]:
        listed = await client.collect_pages("jobs/", {}, limit=LISTED)
        return [one["id"] for one in listed["results"] if one["id"].startswith(digits)]

    async def of_all() -> list[str]:
        return [hit["id"] for hit in await _hits(client, "job", digits)]

    return await _once(client, "job", text, lambda: client.either(of_all, of_account))


async def jobs(client: Client, texts: list[str]) -> list[str]:
    return [await job(client, text) for text in texts]


async def server(client: Client, text: str) -> int:
    """The ID of a server, from its ID or name. Raises CliError."""
    if _NUMBER.fullmatch(text):
        return int(text)

    async def of_account() -> list[str]:
        """An account cannot list its servers, so only servers with a job or a snapshot are found."""
        found: list[Body] = []
        for path in ("snapshots/", "jobs/"):
            found += (await client.collect_pages(path, {}, limit=LISTED))["results"]
        return [str(one["server"]["id"]) for one in found if one["server"]["name"].lower() == text.lower()]

    async def of_all() -> list[str]:
        return [hit["id"] for hit in await _hits(client, "server", text) if hit["exact"]]

    return int(await _once(client, "server", text, lambda: client.either(of_all, of_account)))


async def server_if_any(client: Client, text: str | None) -> int | None:
    return None if text is None else await server(client, text)


async def snapshot(client: Client, text: str) -> int:
    """The ID of a snapshot, from its ID or name. Raises CliError."""
    if _NUMBER.fullmatch(text):
        return int(text)

    async def of_account() -> list[str]:
        listed = await client.collect_pages("snapshots/", {"name": text}, limit=LISTED)
        return [str(one["id"]) for one in listed["results"]]

    async def of_all() -> list[str]:
        return [hit["id"] for hit in await _hits(client, "snapshot", text) if hit["exact"]]

    return int(await _once(client, "snapshot", text, lambda: client.either(of_all, of_account)))


async def snapshot_if_any(client: Client, text: str | None) -> int | None:
    return None if text is None else await snapshot(client, text)


async def token(client: Client, text: str) -> str:
    """The ID of a token, from its ID or name. Raises CliError."""
    if _TOKEN_ID.fullmatch(text):
        return text

    async def of_all() -> list[str]:
        return [hit["id"] for hit in await _hits(client, "token", text) if hit["exact"]]

    return await _once(client, "token", text, of_all)


async def listed(
    client: Client, kind: str, path: str, text: str, *, named: str, queries: Sequence[Query] = ({},)
) -> str:
    """The ID of an item in an account's list, or in the lists of several queries, from its ID, at least the first 8
    digits of it, or its field `named`. Raises CliError."""
    if _JOB_ID.fullmatch(text):
        return text

    async def of_account() -> list[str]:
        pages = [await client.collect_pages(path, query, limit=LISTED) for query in queries]
        return _among([one for page in pages for one in page["results"]], text, named)

    return await _once(client, kind, text, of_account)


async def in_whole_list(client: Client, kind: str, path: str, text: str, *, named: str) -> str:
    """Like `listed`, for a list without pages."""
    if _JOB_ID.fullmatch(text):
        return text

    async def of_account() -> list[str]:
        return _among((await client.get(path))["results"], text, named)

    return await _once(client, kind, text, of_account)


def _among(results: list[Body], text: str, named: str) -> list[str]:
    ids = [one["id"] for one in results if one[named] == text]
    if not ids and _DIGITS.fullmatch(text.lower()):
        ids = [one["id"] for one in results if one["id"].startswith(text.lower())]
    return ids


async def _hits(client: Client, kind: str, text: str) -> list[Body]:
    return list((await client.get("ops/search/", {"q": f"{kind} {text}"}))["results"])


async def _once(client: Client, kind: str, text: str, look_up: Callable[[], Awaitable[list[str]]]) -> str:
    if (kind, text) not in client.resolved:
        client.resolved[kind, text] = _one(kind, text, await look_up())
    return client.resolved[kind, text]


def _one(kind: str, text: str, ids: list[str]) -> str:
    found = list(dict.fromkeys(ids))
    if not found:
        raise CliError(Exit.NOT_FOUND, f"There is no {kind} {text}.")
    if len(found) > 1:
        raise CliError(Exit.USAGE, f"Several {kind}s are called {text}: {', '.join(found)}. Use an ID.")
    return found[0]
