"""One service and one browser for all of these tests; each test has cookies of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.stage import Stage, running, staged
from tests.conftest import needs

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 10_000  # a bound: what is waited for comes within a second, or never


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def stage() -> AsyncIterator[Stage]:
    async with staged() as stage:
        await stage.start_node("node-1", (running(12345 + n, f"shop-{n:02}") for n in range(40)))
        yield stage


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    needs(CHROMIUM)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as browser:
        yield browser
