"""One service and one browser for all of these tests; each test has its own browser context."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, StorageState, async_playwright, expect

from api.dashboard.runbook import GUIDES
from tests.browser.stage import Stage, StagedNode, running, staged
from tests.conftest import needs
from worker.store.model import ServerId

CHROMIUM = "/usr/bin/chromium-headless-shell"  # needs a fifth less CPU time than chromium --headless
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 60_000  # an upper bound: normally it takes less than a second
SERVERS = 60
expect.set_options(timeout=PATIENCE_MS)
TOLD_ANYWAY = ("Failed to load resource", "Failed to fetch")  # about unsuccessful responses and failed requests


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    needs(CHROMIUM)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


async def log_in(page: Page, stage: Stage, secret: str) -> None:
    """Log in and return on the first page."""
    await page.goto(f"{stage.url}/ops/login/")
    await page.get_by_label("Token").fill(secret)
    await page.get_by_role("button", name="Log in").click()
    await page.wait_for_url(f"{stage.url}/ops/")


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        await stage.start_node("node-1", (running(12_345 + n, f"shop-{n:02}") for n in range(SERVERS)))
        yield stage


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def unused(stage: Stage) -> list[ServerId]:
    """Servers that no test has used yet."""
    return list(stage.nodes["node-1"].servers)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def session(stage: Stage, browser: Browser) -> StorageState:
    """The cookies of a logged-in operator."""
    context = await browser.new_context()
    await log_in(await context.new_page(), stage, (await stage.new_operator()).secret)
    state = await context.storage_state()
    await context.close()
    return state


@dataclass(kw_only=True)
class Operator:
    """An operator with a browser, and the service behind it. `troubles`: errors that the browser reported, and
    requests to other hosts."""

    stage: Stage
    page: Page
    node: StagedNode
    unused: list[ServerId]
    troubles: list[str] = field(default_factory=list)

    async def open(self, path: str = "") -> None:
        """Open the page and return when its event stream, which the guides do not have, is connected."""
        await self.page.goto(f"{self.stage.url}/ops/{path}")
        if f"/ops/{path}" not in GUIDES:
            await self.is_live()

    async def is_live(self) -> None:
        await self.page.locator("#connection[data-state=live]").wait_for()

    def a_server(self) -> ServerId:
        return self.unused.pop()

    async def mark(self) -> None:
        """Leave a mark in the document that a reload would remove."""
        await self.page.evaluate("window.mark = 'the same document'")

    async def is_same_document(self) -> bool:
        return bool(await self.page.evaluate("window.mark === 'the same document'"))

    def watch(self) -> None:
        def complain(message: ConsoleMessage) -> None:
            is_told = any(words in message.text for words in TOLD_ANYWAY)
            if message.type in {"error", "warning"} and not is_told:
                self.troubles.append(message.text)

        self.page.on("console", complain)
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self._ensure_here(request.url))

    def _ensure_here(self, url: str) -> None:
        if not url.startswith((self.stage.url, "data:")):
            self.troubles.append(f"asked elsewhere: {url}")


@asynccontextmanager
async def at_browser(
    stage: Stage, browser: Browser, unused: list[ServerId], session: StorageState | None, **wanted: Any
) -> AsyncIterator[Operator]:
    """`wanted`: options of the browser's context."""
    context: BrowserContext = await browser.new_context(storage_state=session, **wanted)
    context.set_default_timeout(PATIENCE_MS)
    node = stage.nodes["node-1"]
    operator = Operator(stage=stage, page=await context.new_page(), node=node, unused=unused)
    operator.watch()
    try:
        yield operator
    finally:
        node.befall()
        await context.close()
    assert operator.troubles == []


@pytest_asyncio.fixture(loop_scope="package")
async def operator(
    stage: Stage, browser: Browser, unused: list[ServerId], session: StorageState
) -> AsyncIterator[Operator]:
    async with at_browser(stage, browser, unused, session) as operator:
        yield operator


@pytest_asyncio.fixture(loop_scope="package")
async def stranger(stage: Stage, browser: Browser, unused: list[ServerId]) -> AsyncIterator[Operator]:
    """A visitor who has not logged in."""
    async with at_browser(stage, browser, unused, None) as operator:
        yield operator
