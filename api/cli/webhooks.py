"""Commands for webhooks, with a token that acts for an account."""

from typing import Annotated

import typer

from api.cli import formats, options, resolve
from api.cli.client import Body, Client, segment
from api.cli.commands import perform
from api.cli.credentials import Out, make_secret
from api.cli.output import Column, Output
from worker.program.command_line import group

app = group()

WEBHOOKS = "webhooks/"


def _state(webhook: Body) -> str:
    if not webhook["enabled"]:
        return f"disabled{': ' + webhook['disabled_reason'] if webhook['disabled_reason'] else ''}"
    return "failing" if webhook["failing_since"] else "enabled"


def _delivery_state(delivery: Body) -> str:
    if delivery["delivered_at"]:
        return "delivered"
    why = f": {delivery['error']}" if delivery["error"] else ""
    return f"{'pending' if delivery['next_attempt_at'] else 'given up'}{why}"


COLUMNS = (
    Column(title="WEBHOOK", of=lambda webhook: webhook["id"][:8]),
    Column(title="URL", of=lambda webhook: webhook["url"]),
    Column(title="STATE", of=_state),
    Column(title="EVENTS", of=lambda webhook: ", ".join(webhook["events"]), yields=2),
    Column(title="DESCRIPTION", of=lambda webhook: webhook["description"], yields=3),
)
DELIVERY_COLUMNS = (
    Column(title="DELIVERY", of=lambda delivery: delivery["id"]),
    Column(title="EVENT", of=lambda delivery: delivery["event"]),
    Column(title="STATE", of=_delivery_state),
    Column(title="ATTEMPTS", of=lambda delivery: delivery["attempts"], yields=2, right=True),
    Column(title="CREATED (UTC)", of=lambda delivery: formats.at(delivery["created_at"]), yields=1),
)

WebhookArgument = Annotated[str, typer.Argument(metavar="WEBHOOK", help="ID, at least its first 8 digits, or URL.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="EVENT", help="Event to send, such as job.completed; repeat for several."),
]
Description = Annotated[str | None, typer.Option(help="Description of the webhook.")]


def list_webhooks(context: typer.Context, *, as_json: options.Json = False) -> None:
    perform(
        context,
        lambda client: client.get(WEBHOOKS),
        lambda output, listed: output.list(COLUMNS, listed, none="No webhooks."),
        as_json=as_json,
    )


@app.command("show")
def show_webhook(context: typer.Context, webhook: WebhookArgument, *, as_json: options.Json = False) -> None:
    """Show a webhook."""

    async def get(client: Client) -> Body:
        return await client.get(await _path(client, webhook))

    perform(context, get, _show_one, as_json=as_json)


@app.command("create")
def create_webhook(
    context: typer.Context,
    url: Annotated[str, typer.Argument(metavar="URL")],
    *,
    event: Events = None,
    description: Description = None,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Create a webhook. The secret that signs its messages is shown only once."""
    body = _given(url=url, events=event or None, description=description)
    make_secret(context, WEBHOOKS, body, lambda new: f"webhook {new['id']}", out=out, as_json=as_json, question=None)


@app.command("edit")
def edit_webhook(
    context: typer.Context,
    webhook: WebhookArgument,
    *,
    url: Annotated[str | None, typer.Option(help="Where to send the events.")] = None,
    event: Events = None,
    description: Description = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether events are sent.")] = None,
    as_json: options.Json = False,
) -> None:
    """Change a webhook, or switch it on or off."""
    body = _given(url=url, events=event or None, description=description, enabled=enabled)
    if not body:
        raise typer.BadParameter("specify what to change")

    async def edit(client: Client) -> Body:
        return await client.patch(await _path(client, webhook), body)

    perform(context, edit, _show_one, as_json=as_json)


@app.command("delete")
def delete_webhook(
    context: typer.Context, webhook: WebhookArgument, *, yes: options.Yes = False, as_json: options.Json = False
) -> None:
    """Delete a webhook. Pending deliveries are not sent."""

    async def question(client: Client) -> str:
        return f"Delete the webhook to {(await client.get(await _path(client, webhook)))['url']}?"

    async def delete(client: Client) -> Body:
        path = await _path(client, webhook)
        await client.delete(path)
        return {"id": path.split("/")[-2]}

    def show(output: Output, deleted: Body) -> None:
        output.say(f"webhook {deleted['id']} deleted")

    perform(context, delete, show, as_json=as_json, question=None if yes else question)


@app.command("rotate-secret")
def rotate_secret(
    context: typer.Context,
    webhook: WebhookArgument,
    *,
    out: Out = None,
    yes: options.Yes = False,
    as_json: options.Json = False,
) -> None:
    """Give a webhook another secret. For a day, messages are signed with both."""

    async def path(client: Client) -> str:
        return f"{await _path(client, webhook)}rotate-secret/"

    question = None if yes else f"Rotate the secret of webhook {webhook}?"
    make_secret(
        context, path, None, lambda new: f"secret of webhook {new['id']}", out=out, as_json=as_json, question=question
    )


@app.command("test")
def send_test(context: typer.Context, webhook: WebhookArgument, *, as_json: options.Json = False) -> None:
    """Send a test event to a webhook."""

    async def test(client: Client) -> Body:
        return await client.post(f"{await _path(client, webhook)}test/")

    perform(context, test, lambda output, sent: output.say(f"delivery {sent['id']} queued"), as_json=as_json)


@app.command("deliveries")
def list_deliveries(
    context: typer.Context,
    webhook: WebhookArgument,
    *,
    limit: options.Limit = 50,
    everything: options.All = False,
    as_json: options.Json = False,
) -> None:
    """List a webhook's deliveries of the last 7 days, newest first."""
    rows = None if everything else limit

    async def collect(client: Client) -> Body:
        return await client.collect_pages(f"{await _path(client, webhook)}deliveries/", {}, limit=rows)

    def show(output: Output, listed: Body) -> None:
        output.list(DELIVERY_COLUMNS, listed, none="No deliveries.")

    perform(context, collect, show, as_json=as_json)


@app.command("redeliver")
def redeliver(
    context: typer.Context,
    webhook: WebhookArgument,
    delivery: Annotated[
        str | None, typer.Argument(metavar="[DELIVERY]", help="Default: all failed deliveries.")
    ] = None,
    *,
    as_json: options.Json = False,
) -> None:
    """Send one failed delivery again, or all of them."""

    async def send(client: Client) -> Body:
        path = await _path(client, webhook)
        one = "" if delivery is None else f"deliveries/{segment(delivery)}/"
        return await client.post(f"{path}{one}redeliver/")

    def show(output: Output, sent: Body) -> None:
        output.say(f"{sent.get('redelivered', 1)} queued")

    perform(context, send, show, as_json=as_json)


async def _path(client: Client, text: str) -> str:
    return f"{WEBHOOKS}{await resolve.in_whole_list(client, 'webhook', WEBHOOKS, text, named='url')}/"


def _given(**fields: object) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _show_one(output: Output, webhook: Body) -> None:
    failing = webhook["failing_since"]
    output.facts(
        (
            ("webhook", webhook["id"]),
            ("url", webhook["url"]),
            ("state", _state(webhook)),
            ("failing since", failing and f"{formats.at(failing)} UTC"),
            ("events", ", ".join(webhook["events"])),
            ("description", webhook["description"]),
            ("created", f"{formats.at(webhook['created_at'])} UTC"),
        )
    )
