"""Commands for schedules, with a token that acts for an account; the list takes an operator token, too."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Literal

import typer

from api.cli import formats, options, resolve
from api.cli.client import Body, Client, Query
from api.cli.commands import perform
from api.cli.connection import run
from api.cli.exits import OperatorsOnly
from api.cli.jobs import SHORT_ID
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group()

SCHEDULES = "schedules/"
BY_LABEL: Query = {"target": "labels"}


def _target(schedule: Body) -> str:
    """Its server, or the labels of its servers."""
    return formats.labels(schedule.get("server_labels")) or formats.named(schedule["server"])


def _when(schedule: Body) -> str:
    zone = schedule.get("time_zone", "UTC")
    return str(schedule["when"]) if zone == "UTC" else f"{schedule['when']} {zone}"


def _last(schedule: Body) -> str:
    last = schedule["last_run"]
    return "-" if last is None else f"{formats.age(last['at'])} ago{': ' + last['error'] if last['error'] else ''}"


COLUMNS = (
    Column(title="SCHEDULE", of=lambda schedule: schedule["id"][:8]),
    Column(title="NAME", of=lambda schedule: schedule["name"]),
    Column(title="SERVER", of=_target),
    Column(title="WHEN", of=_when, yields=1),
    Column(title="KEEP", of=lambda schedule: schedule["keep"], yields=3, right=True),
    Column(title="NEXT RUN (UTC)", of=lambda schedule: formats.at(schedule["next_run_at"]), yields=2),
    Column(title="LAST RUN", of=_last, yields=4),
)

# in the order of the next runs
OF_ALL_COLUMNS = (
    Column(title="NEXT RUN (UTC)", of=lambda schedule: formats.at(schedule["next_run_at"])),
    Column(title="SERVER", of=_target),
    Column(title="ACCOUNT", of=lambda schedule: schedule["account_id"], right=True),
    Column(title="NAME", of=lambda schedule: schedule["name"]),
    Column(title="WHEN", of=_when, yields=1),
    Column(title="KEEP", of=lambda schedule: schedule["keep"], yields=3, right=True),
    Column(title="LAST RUN", of=_last, yields=2),
    Column(title="SCHEDULE", of=lambda schedule: schedule["id"][:8], yields=4),
)

ScheduleArgument = Annotated[str, typer.Argument(metavar="SCHEDULE", help="ID, at least its first 8 digits, or name.")]
COVERED_COLUMNS = (
    Column(title="SERVER", of=lambda one: formats.named(one["server"])),
    Column(title="STARTS (UTC)", of=lambda one: formats.at(one["starts_at"])),
    Column(title="LAST RUN", of=_last, yields=1),
    Column(title="JOB", of=lambda one: (one["last_run"] or {}).get("job_id") or "", yields=2, digits=SHORT_ID),
)
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Start of the names of its snapshots.")]
WHEN = "hourly, daily, weekly, or a cron expression, in UTC or in --time-zone."
TimeZone = Annotated[str | None, typer.Option(metavar="ZONE", help="Time zone of --when, such as Europe/Berlin.")]
Window = Annotated[
    timedelta | None,
    typer.Option(
        parser=options.period,
        metavar="2h",
        help="How long after --when runs may start; the servers' runs are spread over this time.",
    ),
]
LABELS = "Label of the servers; repeat it for several labels."
Keep = Annotated[
    int | None,
    typer.Option(min=1, help="How many of its snapshots of each server to keep, at most the server's limit."),
]
ExpireAfter = Annotated[
    timedelta | None,
    typer.Option(parser=options.whole_hours, metavar="30d", help="Delete each of its snapshots after this time."),
]
Consistency = Annotated[Literal["stop", "live"] | None, typer.Option(help="Whether its snapshots stop the server.")]


def list_schedules(
    context: typer.Context,
    *,
    account_id: options.AccountId = None,
    server_id: options.ServerFilter = None,
    since: options.NextRun = None,
    until: options.NextRun = None,
    limit: options.Limit = 100,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    rows, output = None if everything else limit, Output(as_json=as_json)
    filters = {"account_id": account_id, "since": options.rfc3339(since), "until": options.rfc3339(until)}

    async def of_all(client: Client) -> tuple[Sequence[Column], Body]:
        query = filters | {"target": "all", "server_id": await resolve.server_if_any(client, server_id)}
        return OF_ALL_COLUMNS, await client.collect("ops/schedules/", query, limit=rows)

    async def of_account(client: Client) -> tuple[Sequence[Column], Body]:
        if denied := [name for name, value in filters.items() if value is not None]:
            raise OperatorsOnly(f"Only an operator token can filter by {', '.join(denied)}.")
        return COLUMNS, await _of_account(client, server_id, rows)

    async def show(client: Client) -> None:
        columns, listed = await client.either(lambda: of_all(client), lambda: of_account(client))
        output.document(listed) if as_json else output.list(columns, listed, none="No schedules.")

    run(context, show)


async def _of_account(client: Client, server_id: str | None, rows: int | None) -> Body:
    query = {"server_id": await resolve.server_if_any(client, server_id)}
    of_servers = await client.collect_pages(SCHEDULES, query, limit=rows)
    if server_id is not None:
        return of_servers
    by_label = await client.collect_pages(SCHEDULES, BY_LABEL, limit=rows)
    results = [*by_label["results"], *of_servers["results"]]
    return {"count": by_label["count"] + of_servers["count"], "results": results[:rows]}


@app.command("show")
def show_schedule(context: typer.Context, schedule: ScheduleArgument, *, as_json: options.Json = False) -> None:
    """Show a schedule with its last run."""

    async def get(client: Client) -> Body:
        return await client.get(await _path(client, schedule))

    perform(context, get, _show_one, as_json=as_json)


@app.command("create")
def create_schedule(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    server: options.ServerArgument,
    name: NameArgument,
    *,
    when: Annotated[str, typer.Option(help=WHEN)],
    time_zone: TimeZone = None,
    window: Window = None,
    keep: Keep = None,
    expire_after: ExpireAfter = None,
    consistency: Consistency = None,
    as_json: options.Json = False,
) -> None:
    """Create a schedule of one server."""
    body = _given(name=name, when=when, keep=keep, consistency=consistency, time_zone=time_zone)
    body |= _hours(expire_after) | _minutes(window)

    async def create(client: Client) -> Body:
        return await client.post(SCHEDULES, {"server_id": await resolve.server(client, server), **body})

    perform(context, create, _show_one, as_json=as_json)


@app.command("create-by-label")
def create_by_label(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    name: NameArgument,
    *,
    label: Annotated[list[str], typer.Option(metavar="KEY=VALUE", help=LABELS)],
    when: Annotated[str, typer.Option(help=WHEN)],
    time_zone: TimeZone = None,
    window: Window = None,
    keep: Keep = None,
    expire_after: ExpireAfter = None,
    consistency: Consistency = None,
    as_json: options.Json = False,
) -> None:
    """Create a schedule for all servers with these labels, including servers labeled later."""
    body = {"server_labels": options.label_pairs(label)}
    body |= _given(name=name, when=when, keep=keep, consistency=consistency, time_zone=time_zone)
    body |= _hours(expire_after) | _minutes(window)
    perform(context, lambda client: client.post(SCHEDULES, body), _show_one, as_json=as_json)


@app.command("servers")
def list_covered(
    context: typer.Context,
    schedule: ScheduleArgument,
    *,
    limit: options.Limit = 100,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """List the servers of a schedule, each with its run in the current or latest window."""
    rows = None if everything else limit

    async def collect(client: Client) -> Body:
        return await client.collect(f"{await _path(client, schedule)}servers/", {}, limit=rows)

    def show(output: Output, listed: Body) -> None:
        output.list(COVERED_COLUMNS, listed, none="No servers.")

    perform(context, collect, show, as_json=as_json)


@app.command("edit")
def edit_schedule(  # noqa: PLR0913 - an option is a parameter
    context: typer.Context,
    schedule: ScheduleArgument,
    *,
    name: Annotated[str | None, typer.Option(help="Start of the names of its snapshots.")] = None,
    when: Annotated[str | None, typer.Option(help=WHEN)] = None,
    time_zone: TimeZone = None,
    window: Window = None,
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help=LABELS)] = None,
    keep: Keep = None,
    expire_after: ExpireAfter = None,
    never_expire: Annotated[bool, typer.Option("--never-expire", help="Keep its snapshots forever.")] = False,
    consistency: Consistency = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it runs.")] = None,
    as_json: options.Json = False,
) -> None:
    """Change a schedule, or switch it on or off."""
    body = _given(name=name, when=when, keep=keep, consistency=consistency, enabled=enabled, time_zone=time_zone)
    body |= _hours(expire_after) | _minutes(window)
    body |= {"server_labels": options.label_pairs(label)} if label else {}
    body |= {"expire_after_hours": None} if never_expire else {}
    if not body:
        raise typer.BadParameter("specify what to change")

    async def edit(client: Client) -> Body:
        return await client.patch(await _path(client, schedule), body)

    perform(context, edit, _show_one, as_json=as_json)


@app.command("delete")
def delete_schedule(
    context: typer.Context, schedule: ScheduleArgument, *, yes: options.Yes = False, as_json: options.Json = False
) -> None:
    """Delete a schedule. Its snapshots stay."""

    async def question(client: Client) -> str:
        found = await client.get(await _path(client, schedule))
        return f"Delete schedule {found['name']} of {_target(found)}?"

    async def delete(client: Client) -> Body:
        path = await _path(client, schedule)
        await client.delete(path)
        return {"id": path.split("/")[-2]}

    def show(output: Output, deleted: Body) -> None:
        output.say(f"schedule {deleted['id']} deleted")

    perform(context, delete, show, as_json=as_json, question=None if yes else question)


async def _path(client: Client, text: str) -> str:
    found = await resolve.listed(client, "schedule", SCHEDULES, text, named="name", queries=({}, BY_LABEL))
    return f"{SCHEDULES}{found}/"


def _given(**fields: object) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _hours(period: timedelta | None) -> Body:
    return {} if period is None else {"expire_after_hours": period // timedelta(hours=1)}


def _minutes(window: timedelta | None) -> Body:
    return {} if window is None else {"window_minutes": window // timedelta(minutes=1)}


def _show_one(output: Output, schedule: Body) -> None:
    expires, last = schedule["expire_after_hours"], schedule["last_run"]
    minutes, window = schedule.get("window_minutes"), schedule.get("window")
    output.facts(
        (
            ("schedule", schedule["id"]),
            ("name", schedule["name"]),
            ("labels" if schedule.get("server_labels") else "server", _target(schedule)),
            ("when", _when(schedule)),
            ("window", minutes and f"{minutes} minutes"),
            ("enabled", "yes" if schedule["enabled"] else "no"),
            ("keeps", f"the newest {schedule['keep']}"),
            ("expire after", None if expires is None else f"{expires} hours"),
            ("consistency", schedule["consistency"]),
            ("next run", schedule["next_run_at"] and f"{formats.at(schedule['next_run_at'])} UTC"),
            ("last window", window and _counted(window)),
            ("last run", last and f"{formats.at(last['at'])} UTC, {last['error'] or 'job ' + str(last['job_id'])}"),
        )
    )


def _counted(window: Body) -> str:
    """The runs of a window."""
    runs = ", ".join(f"{window[result]} {result}" for result in ("waiting", "started", "refused", "missed"))
    return f"{formats.at(window['starts_at'])} UTC: {runs}"
