"""The command `find`: anything by its ID or name."""

from typing import Annotated

import typer

from api.cli import formats, jobs, nodes, servers, snapshots, tokens
from api.cli.client import Body, Client, segment
from api.cli.connection import run
from api.cli.exits import Exit
from api.cli.options import Json
from api.cli.output import Column, Output

COLUMNS = (
    Column(title="KIND", of=lambda hit: hit["kind"]),
    Column(title="ID", of=lambda hit: hit["id"]),
    Column(title="NAME", of=lambda hit: hit["name"] or "-"),
    Column(title="STATE OR NODE", of=lambda hit: formats.word(hit["state"] or "-"), yields=1),
    Column(title="SERVER", of=lambda hit: hit["server_id"] or "-", yields=3, right=True),
    Column(title="ACCOUNT", of=lambda hit: hit["account_id"] or "-", yields=2, right=True),
)
_SHOWN = {
    "server": servers.show_one,
    "snapshot": snapshots.show_known,
    "job": jobs.show_one,
    "node": nodes.show_one,
}
ENTRIES = 20  # of the audit log, of a token or a request


def find(
    context: typer.Context,
    text: Annotated[
        list[str],
        typer.Argument(metavar="ID OR NAME...", help="To search one kind of object, name it first: snapshot 801."),
    ],
    *,
    as_json: Json = False,
) -> None:
    output = Output(as_json=as_json)

    async def search(client: Client) -> Exit:
        found = await client.get("ops/search/", {"q": " ".join(text)})
        hits = found["results"]
        if as_json:
            output.document(found)
        elif (one := _only(hits)) is not None and one["kind"] in _SHOWN:
            _SHOWN[one["kind"]](output, await client.get(f"ops/{one['kind']}s/{segment(one['id'])}/"))
        else:
            output.table(COLUMNS, hits, none="No matches for this ID or name.")
            if one is not None and one["kind"] in {"token", "request"}:
                did = await client.get("ops/audit/", {f"{one['kind']}_id": one["id"], "limit": ENTRIES})
                output.heading("Audit log")
                output.table(tokens.AUDIT_COLUMNS, did["results"], none="No entries.")
        return Exit.OK if hits else Exit.NOT_FOUND

    run(context, search)


def _only(hits: list[Body]) -> Body | None:
    likely = [hit for hit in hits if hit["exact"]] or hits
    return likely[0] if len(likely) == 1 else None
