"""The documentation's pages: on phones, in dark mode, with screen readers and keyboards, and self-contained."""

import pytest
from playwright.async_api import Browser, expect

from api.document import served
from api.document.pages import DOCS, PAGES
from tests.browser.axe import ALL, LOOKS, STRUCTURE, findings
from tests.browser.conftest import Operator, at_browser
from tests.browser.stage import Stage
from worker.store.model import ServerId

pytestmark = pytest.mark.asyncio(loop_scope="package")

PATHS = (*(page.path for page in PAGES), f"{DOCS}/search/?q=nothing-has-this", f"{DOCS}/search/?q=busy")
KINDS = (DOCS, f"{DOCS}/errors/", f"{DOCS}/schedules/", PATHS[-1])  # prose, tables, calls with objects, results
PHONES = (360, 390, 414)
KIND = LOOKS if ALL else {name: LOOKS[name] for name in ("light", "dark")}


async def test_axe_finds_nothing(stranger: Operator) -> None:
    found = {}
    for path in PATHS:
        await stranger.page.goto(f"{stranger.stage.url}{path}")
        found[path] = await findings(stranger.page, KIND if path in KINDS else STRUCTURE)
    assert {path: some for path, some in found.items() if some} == {}


async def test_every_page_is_checked() -> None:
    leading, assets = {f"{DOCS}/", f"{DOCS}/{{page}}"}, {f"{served.ASSET}{{name}}"}
    shown = {path for path in served.PAGES if path.startswith(DOCS)} - leading - assets
    assert shown == {DOCS, f"{DOCS}/{{page}}/", served.SEARCH}  # PATHS has all names for these patterns


async def test_no_page_is_wider_than_a_phone(stranger: Operator) -> None:
    wide: list[tuple[str, object]] = []
    for path in PATHS:
        await stranger.page.goto(f"{stranger.stage.url}{path}")
        for width in PHONES:
            await stranger.page.set_viewport_size({"width": width, "height": 800})
            if await stranger.page.evaluate("document.documentElement.scrollWidth") > width:
                wide.append((path, width))
        hiding = "all => all.filter(one => one.scrollWidth > one.clientWidth).length"
        if await stranger.page.locator(".scroll").evaluate_all(hiding):
            wide.append((path, "a table"))
    assert wide == []


async def test_on_a_phone_a_button_shows_the_pages(stage: Stage, browser: Browser, unused: list[ServerId]) -> None:
    phone = {"width": 360, "height": 800}
    async with at_browser(stage, browser, unused, None, viewport=phone, has_touch=True) as operator:
        await operator.page.goto(f"{stage.url}{DOCS}")
        menu = operator.page.get_by_role("navigation", name="Pages")
        await expect(menu).to_be_hidden()
        await operator.page.get_by_role("button", name="Pages").tap()
        assert await findings(operator.page, {"phone": LOOKS["phone"]}) == []
        await menu.get_by_role("link", name="Webhooks").tap()
        await expect(operator.page.get_by_role("heading", level=1)).to_have_text("Webhooks")


async def test_a_language_is_chosen_once_for_all_samples(stranger: Operator) -> None:
    page = stranger.page
    await page.goto(f"{stranger.stage.url}{DOCS}/snapshots/")
    await page.get_by_role("radio", name="Python").first.check(force=True)
    for path in (f"{DOCS}/snapshots/", f"{DOCS}/webhooks/"):
        await page.goto(f"{stranger.stage.url}{path}")
        assert await page.locator("pre[data-language=sh]:visible").count() == 0
        assert await page.locator("pre[data-language=python]:visible").count() > 5


async def test_the_search_shows_what_it_finds_while_one_types(stranger: Operator) -> None:
    page = stranger.page
    await page.goto(f"{stranger.stage.url}{DOCS}")
    await page.keyboard.press("/")
    await page.keyboard.type("restore a server")
    await page.locator("#found").get_by_role("link", name="Restore a server from a snapshot").click()
    await expect(page.locator("#restore_snapshot")).to_be_in_viewport()
    await page.keyboard.press("/")
    await page.keyboard.type("name_taken")
    await page.keyboard.press("Enter")
    await page.locator("#results").get_by_role("link", name="name_taken").click()
    await expect(page.locator("#name_taken")).to_be_in_viewport()
