"""An operator's browser at the HTTP level: it keeps a cookie, sends the origin of a request, and submits forms."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from aiohttp import ClientSession
from yarl import URL

from api.dashboard.session import COOKIE, LOGIN
from tests.integration.conftest import Cell
from tests.integration.front_end import FrontEnd, serving
from worker.store.access.tokens import Permission

FROM_HERE = {"Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True, kw_only=True)
class Page:
    status: int
    headers: Mapping[str, str]
    text: str
    cookies: tuple[str, ...]

    @property
    def csrf(self) -> str:
        (found,) = re.findall(r'<meta name="csrf-token" content="([^"]+)">', self.text)
        return str(found)


@dataclass(kw_only=True)
class Browser:
    """`session`: an empty one sends no session."""

    client: ClientSession
    port: int
    session: str = ""
    csrf: str = ""

    async def ask(self, method: str, path: str, *, data: Any = None, headers: Mapping[str, str] | None = None) -> Page:
        cookie = {"Cookie": f"{COOKIE}={self.session}"} if self.session else {}
        url = URL(f"http://127.0.0.1:{self.port}{path}", encoded=True)
        sent = {**FROM_HERE, **cookie, **(headers or {})}
        async with self.client.request(method, url, data=data, headers=sent, allow_redirects=False) as answer:
            return Page(
                status=answer.status,
                headers=answer.headers,
                text=await answer.text(),
                cookies=tuple(answer.headers.getall("Set-Cookie", ())),
            )

    async def get(self, path: str, **headers: str) -> Page:
        return await self.ask("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def seen(self, path: str) -> str:
        """The text of a page that must exist."""
        page = await self.get(path)
        assert page.status == 200, page.text
        return page.text

    async def login(self, token: str, *, to: str = "", **headers: str) -> Page:
        sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        page = await self.ask("POST", LOGIN, data=urlencode({"token": token, "next": to}), headers=sent)
        for cookie in page.cookies:
            self.session = cookie.split(";")[0].partition("=")[2]
        return page

    async def post(self, path: str, fields: Mapping[str, Any] | None = None, **headers: str) -> Page:
        """Post as a page of the dashboard does, with its CSRF token."""
        if not self.csrf:
            self.csrf = (await self.get("/ops/jobs/")).csrf
        sent = {"X-CSRF-Token": self.csrf, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return await self.ask("POST", path, data=urlencode(fields or {}, doseq=True), headers=sent)

    async def done(self, path: str, fields: Mapping[str, Any] | None = None) -> str:
        page = await self.post(path, fields)
        assert page.status == 200, page.text
        return page.text


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """A front end and an operator who has logged in to its dashboard."""

    api: FrontEnd
    browser: Browser
    token: str

    @property
    def cell(self) -> Cell:
        return self.api.cell

    def stranger(self) -> Browser:
        return Browser(client=self.api.client, port=self.api.port)


@asynccontextmanager
async def dashboard_of(cell: Cell, **settings: Any) -> AsyncIterator[Dashboard]:
    async with serving(cell, **{"calls_per_minute": 100_000, **settings}) as api:
        token = await api.new_token(account=None, permissions={Permission.OPERATOR})
        browser = Browser(client=api.client, port=api.port)
        assert (await browser.login(token)).status == 303
        yield Dashboard(api=api, browser=browser, token=token)
