"""The API tokens: list, create, revoke."""

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from api.dashboard.context import Context, Section
from api.dashboard.rendering import Link, Question
from api.dashboard.session import Form, OperatorRequest
from api.http import reading
from api.http.marks import MADE
from api.http.reading import in_path
from api.operators.bodies import TOKEN_ID, TokenBody
from worker.store import errors
from worker.store.access.tokens import Permission, Token

TOKENS = "/ops/tokens/"
NEW = f"{TOKENS}new/"
REVOKE = f"{TOKENS}{{token_id}}/revoke/"
# labels by hours
LIFETIMES: Mapping[int, str] = {12: "12 hours", 24 * 7: "7 days", 24 * 90: "90 days", 24 * 365: "1 year"}

_NUMBER = re.compile(r"[0-9]{1,19}")  # no ID is longer


async def show_all(context: Context, request: OperatorRequest) -> web.Response:
    return context.rendering.page(
        request.http,
        "tokens.html",
        tokens=await context.tokens.all(),
        used=await context.uses.all(),
        operator=Permission.OPERATOR_READ,
    )


async def ask_for_new(context: Context, request: OperatorRequest) -> web.Response:
    return context.rendering.page(request.http, "token_new.html", permissions=Permission, lifetimes=LIFETIMES)


async def create(context: Context, request: OperatorRequest) -> web.Response:
    body = reading.validated(_body(request.form), TokenBody)
    new = await context.tokens.create(
        name=body.name, account_id=body.account_id, permissions=body.granted, lifetime=body.lifetime
    )
    request.http[MADE] = f"token {new.token.id}"
    return context.rendering.page(request.http, "token_made.html", new=new, back=TOKENS)


def _body(form: Form) -> dict[str, Any]:
    """The form's values in the API's types."""
    body: dict[str, Any] = {
        "name": " ".join(form.get("name", [""])).strip(),
        "permissions": form.get("permissions", []),
    }
    for number in ("account_id", "lifetime_hours"):
        text = "".join(form.get(number, []))
        body[number] = int(text) if _NUMBER.fullmatch(text) else text or None
    return body


async def ask_to_revoke(context: Context, request: OperatorRequest) -> web.Response:
    token = await _token(context, in_path(request.http, TOKEN_ID))
    own = " You are logged in with it: your session will end." if token.id == request.token.id else ""
    question = Question(
        title=f"Revoke token {token.name}?",
        text=f"Calls with this token (ID {token.id}) will fail from now on. This cannot be undone.{own}",
        verb="Revoke",
        is_grave=True,
    )
    return context.rendering.ask(request.http, question, back=TOKENS)


async def revoke(context: Context, request: OperatorRequest) -> web.Response:
    token = await _token(context, in_path(request.http, TOKEN_ID))
    if not await context.tokens.revoke(token.id):
        raise errors.TokenNotFound.of(id=token.id)
    return context.rendering.done(request.http, f"Token {token.name} ({token.id}) revoked.", back=TOKENS)


async def _token(context: Context, token_id: str) -> Token:
    """Raises TokenNotFound."""
    found = next((token for token in await context.tokens.all() if token.id == token_id), None)
    if found is None:
        raise errors.TokenNotFound.of(id=token_id)
    return found


SECTION = Section(
    pages={TOKENS: show_all},
    questions={NEW: ask_for_new, REVOKE: ask_to_revoke},
    actions={TOKENS: create, REVOKE: revoke},
    link=Link(href=TOKENS, name="Tokens", key="t"),
)
