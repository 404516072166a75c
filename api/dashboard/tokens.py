"""The tokens: who may call, a new one, and the end of one."""

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from api.dashboard.desk import Desk, Pages
from api.dashboard.rendering import Question
from api.dashboard.session import Form, Visit
from api.http import reading
from api.http.marks import MADE
from api.http.reading import in_path
from api.operators.bodies import TOKEN_ID, TokenBody
from worker.store import errors
from worker.store.access.tokens import Permission, Token

TOKENS = "/ops/tokens/"
NEW = f"{TOKENS}new/"
REVOKE = f"{TOKENS}{{token_id}}/revoke/"
LIFETIMES: Mapping[int, str] = {12: "12 hours", 24 * 7: "7 days", 24 * 90: "90 days", 24 * 365: "a year"}  # by hours

_NUMBER = re.compile(r"[0-9]{1,19}")  # an id has no more


async def show_all(desk: Desk, visit: Visit) -> web.Response:
    tokens = await desk.tokens.all()
    return desk.rendering.page(visit.request, "tokens.html", tokens=tokens, operator=Permission.OPERATOR)


async def ask_for_new(desk: Desk, visit: Visit) -> web.Response:
    return desk.rendering.page(visit.request, "token_new.html", permissions=Permission, lifetimes=LIFETIMES)


async def create(desk: Desk, visit: Visit) -> web.Response:
    wanted = reading.validated(_wanted(visit.form), TokenBody)
    new = await desk.tokens.create(
        name=wanted.name, account_id=wanted.account_id, permissions=wanted.granted, lifetime=wanted.lifetime
    )
    visit.request[MADE] = f"token {new.token.id}"
    return desk.rendering.page(visit.request, "token_made.html", new=new, back=TOKENS)


def _wanted(form: Form) -> dict[str, Any]:
    """As the API is told: a form has texts only."""
    wanted: dict[str, Any] = {
        "name": " ".join(form.get("name", [""])).strip(),
        "permissions": form.get("permissions", []),
    }
    for number in ("account_id", "lifetime_hours"):
        text = "".join(form.get(number, []))
        wanted[number] = int(text) if _NUMBER.fullmatch(text) else text or None
    return wanted


async def ask_to_revoke(desk: Desk, visit: Visit) -> web.Response:
    token = await _token(desk, in_path(visit.request, TOKEN_ID))
    own = " It is the one that you are logged in with: your session ends." if token.id == visit.token.id else ""
    question = Question(
        title=f"Revoke the token {token.name}?",
        text=f"Whoever calls with it (id {token.id}) is refused from now on. It can't be taken back.{own}",
        verb="Revoke",
        back=TOKENS,
        is_grave=True,
    )
    return desk.rendering.ask(visit.request, question)


async def revoke(desk: Desk, visit: Visit) -> web.Response:
    token = await _token(desk, in_path(visit.request, TOKEN_ID))
    if not await desk.tokens.revoke(token.id):
        raise _no_token(token.id)
    return desk.rendering.done(visit.request, f"The token {token.name} ({token.id}) is revoked.", back=TOKENS)


async def _token(desk: Desk, token_id: str) -> Token:
    """Raises TokenNotFound."""
    found = next((token for token in await desk.tokens.all() if token.id == token_id), None)
    if found is None:
        raise _no_token(token_id)
    return found


def _no_token(token_id: str) -> errors.TokenNotFound:
    return errors.TokenNotFound(f"There is no token {token_id}.")


PAGES: Pages = {TOKENS: show_all, NEW: ask_for_new, REVOKE: ask_to_revoke}
ACTIONS: Pages = {TOKENS: create, REVOKE: revoke}
