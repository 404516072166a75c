"""What a front end shows of its cell, in the operators' calls and on the dashboard's pages."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http import HTTPStatus
from typing import Any

import aiohttp

from api.dashboard.session import COOKIE, LOGIN
from deploy.demo.client import Client
from tests.integration.browsing import FROM_HERE


class Page(HTMLParser):
    """`rows`: rows of tables by ID, with the texts of the cells by label. `facts`: by name. `text`: the whole
    visible text in one line."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, str]] = {}
        self.facts: dict[str, str] = {}
        self._row = self._cell = self._fact = ""
        self._part = ""  # part of a fact: dt or dd
        self._words: list[str] = []
        self.feed(html)

    @property
    def text(self) -> str:
        return " ".join(self._words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "tr":
            self._row = given.get("id") or ""
        elif tag == "td":
            self._cell = given.get("data-label") or ""
        elif tag in {"dt", "dd"}:
            self._part = tag
            self._fact = "" if tag == "dt" else self._fact

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = ""
        elif tag in {"dt", "dd"}:
            self._part = ""

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if not words:
            return
        self._words.append(words)
        if self._row and self._cell:
            cells = self.rows.setdefault(self._row, {})
            cells[self._cell] = f"{cells.get(self._cell, '')} {words}".strip()
        elif self._part == "dt":
            self._fact = f"{self._fact} {words}".strip()
        elif self._part == "dd":
            self.facts[self._fact] = f"{self.facts.get(self._fact, '')} {words}".strip()


@dataclass(frozen=True, kw_only=True)
class Told:
    """At about the same time. By name or ID; `pages` by path."""

    nodes: Mapping[str, Any]
    servers: Mapping[int, Any]
    jobs: Mapping[str, Any]  # jobs that have not ended
    snapshots: Mapping[int, frozenset[int]]  # completed snapshots by server
    overview: Mapping[str, Any]
    pages: Mapping[str, Page]


@dataclass(kw_only=True)
class Teller:
    """An operator at one front end, with a session of the dashboard, and a customer."""

    url: str
    operator: str  # tokens
    customer: str
    _session: str = field(default="", init=False)

    async def asked(self, servers: Iterable[int]) -> Told:
        nodes = await self._all("/api/v1/ops/nodes/?limit=100")
        listed = await self._all("/api/v1/ops/servers/?limit=100")
        jobs = [
            job for state in ("queued", "in_progress") for job in await self._all(f"/api/v1/ops/jobs/?state={state}")
        ]
        paths = ["/ops/", "/ops/nodes/", "/ops/servers/"]
        paths += [f"/ops/nodes/{node['name']}/" for node in nodes]
        paths += [f"/ops/servers/{server}/" for server in servers] + [f"/ops/jobs/{job['id']}/" for job in jobs]
        return Told(
            nodes={node["name"]: node for node in nodes},
            servers={server["id"]: server for server in listed},
            jobs={job["id"]: job for job in jobs},
            snapshots={server: await self._completed(server) for server in servers},
            overview=(await self._answer("/api/v1/ops/overview/", self.operator)),
            pages={path: Page(await self._page(path)) for path in paths},
        )

    async def alive(self) -> dict[str, bool]:
        """The nodes that are alive."""
        return {node["name"]: node["alive"] for node in await self._all("/api/v1/ops/nodes/?limit=100")}

    async def _all(self, path: str) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = (await self._answer(path, self.operator))["results"]
        return results

    async def _completed(self, server: int) -> frozenset[int]:
        found = await self._answer(f"/api/v1/snapshots/?server_id={server}&page_size=500", self.customer)
        return frozenset(one["id"] for one in found["results"] if one["status"] == "completed")

    async def _answer(self, path: str, token: str) -> Any:
        answer = await Client(self.url, token).call("GET", path)
        if answer.status != HTTPStatus.OK:
            raise aiohttp.ClientError(f"{path}: {answer.status} {answer.body}")
        return answer.body

    async def _page(self, path: str) -> str:
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            if not self._session:
                await self._login(session)
            cookie = {"Cookie": f"{COOKIE}={self._session}"}
            async with session.get(f"{self.url}{path}", headers=FROM_HERE | cookie, allow_redirects=False) as answer:
                if answer.status != HTTPStatus.OK:
                    raise aiohttp.ClientError(f"{path}: {answer.status}")
                return await answer.text()

    async def _login(self, session: aiohttp.ClientSession) -> None:
        form = {"token": self.operator, "next": ""}
        async with session.post(f"{self.url}{LOGIN}", data=form, headers=FROM_HERE, allow_redirects=False) as answer:
            if COOKIE not in answer.cookies:
                raise aiohttp.ClientError(f"{LOGIN}: {answer.status} {await answer.text()}")
            self._session = answer.cookies[COOKIE].value
