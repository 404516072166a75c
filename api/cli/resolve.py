"""IDs from what people type: the first digits of a job's ID, the name of a server, snapshot or token."""

import re
from collections.abc import Sequence

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

    return _one("job", text, await client.either(of_all, of_account))


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

    return int(_one("server", text, await client.either(of_all, of_account)))


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

    return int(_one("snapshot", text, await client.either(of_all, of_account)))


async def snapshot_if_any(client: Client, text: str | None) -> int | None:
    return None if text is None else await snapshot(client, text)


async def token(client: Client, text: str) -> str:
    """The ID of a token, from its ID or name. Raises CliError."""
    if _TOKEN_ID.fullmatch(text):
        return text
    return _one("token", text, [hit["id"] for hit in await _hits(client, "token", text) if hit["exact"]])


async def listed(
    client: Client, kind: str, path: str, text: str, *, named: str, queries: Sequence[Query] = ({},)
) -> str:
    """The ID of an item in an account's list, or in the lists of several queries, from its ID, at least the first 8
    digits of it, or its field `named`. Raises CliError."""
    if _JOB_ID.fullmatch(text):
        return text
    pages = [await client.collect_pages(path, query, limit=LISTED) for query in queries]
    return _among([one for page in pages for one in page["results"]], kind, text, named)


async def in_whole_list(client: Client, kind: str, path: str, text: str, *, named: str) -> str:
    """Like `listed`, for a list without pages."""
    return text if _JOB_ID.fullmatch(text) else _among((await client.get(path))["results"], kind, text, named)


def _among(results: list[Body], kind: str, text: str, named: str) -> str:
    ids = [one["id"] for one in results if one[named] == text]
    if not ids and _DIGITS.fullmatch(text.lower()):
        ids = [one["id"] for one in results if one["id"].startswith(text.lower())]
    return _one(kind, text, ids)


async def _hits(client: Client, kind: str, text: str) -> list[Body]:
    return list((await client.get("ops/search/", {"q": f"{kind} {text}"}))["results"])


def _one(kind: str, text: str, ids: list[str]) -> str:
    found = list(dict.fromkeys(ids))
    if not found:
        raise CliError(Exit.NOT_FOUND, f"There is no {kind} {text}.")
    if len(found) > 1:
        raise CliError(Exit.USAGE, f"Several {kind}s are called {text}: {', '.join(found)}. Use an ID.")
    return found[0]
