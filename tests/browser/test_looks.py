"""What every page must be: safe with any text, for keyboards, phones, dark rooms and screen readers, and light."""

import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, StorageState, expect

from drivers.fake_faults import Effect, Rule
from tests.browser.conftest import Operator, at_browser
from tests.browser.stage import Stage, running
from worker.store.model import ServerId

pytestmark = pytest.mark.asyncio(loop_scope="package")

HOSTILE = """<img src=x onerror="window.hostile=1"></td><script>window.hostile=1</script>"'&amp;{{7*7}}"""
HOSTILE_SERVER = 66_600
PHONE = {"width": 390, "height": 844}
WEIGHT_MAX = 150_000  # bytes on the wire, with all that the page needs
Paths = Mapping[str, str]
RULES: Mapping[Literal["light", "dark"], dict[str, Any]] = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def paths(stage: Stage, unused: list[ServerId]) -> AsyncIterator[Paths]:
    """Every page, with something on it."""
    node, first = stage.nodes["node-1"], unused.pop()
    stranded, failed, slow = unused.pop(), unused.pop(), unused.pop()
    hostile = await stage.start_node("node-2", [running(HOSTILE_SERVER, HOSTILE)])
    done = await stage.ended(await stage.create(first))
    node.befall(
        Rule(effect=Effect.START, server_id=stranded, fails=True),
        Rule(effect=Effect.SNAPSHOT_DISK, server_id=failed, fails=True),
        Rule(effect=Effect.SNAPSHOT_DISK, server_id=slow, seconds=3600),
    )
    jobs = {name: await stage.create(of) for name, of in (("stranded", stranded), ("failed", failed), ("slow", slow))}
    for name in ("stranded", "failed"):
        await stage.ended(jobs[name])
    await stage.at_step(jobs["slow"], "snapshotting")
    await stage.operators.pause(hostile.name, by="Olga", reason=HOSTILE)
    waiting = await stage.create(HOSTILE_SERVER, "waits", HOSTILE)
    yield {
        "overview": "",
        "jobs": "jobs/?limit=10",
        "jobs, none": "jobs/?text=nothing-has-this",
        "job, completed": f"jobs/{done.id}/",
        "job, stranded": f"jobs/{jobs['stranded']}/",
        "job, failed": f"jobs/{jobs['failed']}/",
        "job, in progress": f"jobs/{jobs['slow']}/",
        "job, waiting": f"jobs/{waiting}/",
        "nodes": "nodes/",
        "node": f"nodes/{hostile.name}/",
        "servers": f"servers/?node={hostile.name}",
        "server": f"servers/{HOSTILE_SERVER}/",
        "server, stranded": f"servers/{stranded}/",
        "find": "find/?q=web",
        "find, none": "find/?q=nothing-has-this",
        "snapshot": f"snapshots/{done.snapshot_id}/",
        "audit, logins": "audit/?what=logins",
        "findings": "findings/",
        "audit": "audit/",
        "tokens": "tokens/",
        "nodes, paused": "nodes/?state=paused",
        "question, pause": "drain/?action=pause&nodes=node-1&nodes=node-2",
        "question": f"jobs/{jobs['stranded']}/resolve/",
        "question, forced": "jobs/bulk/?action=retry&all=true&state=failed&force=true",
        "new token": "tokens/new/",
    }


async def serious(operator: Operator) -> list[str]:
    """What axe finds that keeps somebody from using the page. In the dark only the colours are others."""
    found = []
    for scheme, rules in RULES.items():
        await operator.page.emulate_media(color_scheme=scheme)
        answer: dict[str, Any] = (
            await Axe().run(operator.page, options={"resultTypes": ["violations"], **rules})
        ).response
        found += [
            f"{scheme}, {one['id']}: {node['target']} {node.get('failureSummary', '')}"
            for one in answer["violations"]
            if one["impact"] in {"serious", "critical"}
            for node in one["nodes"]
        ]
    return found


async def test_no_page_has_a_serious_finding_of_axe_neither_light_nor_dark(
    operator: Operator, stranger: Operator, paths: Paths
) -> None:
    found = {}
    for name, path in paths.items():
        await operator.open(path)
        found[name] = await serious(operator)
    await operator.open(paths["job, failed"])
    await operator.page.get_by_role("button", name="Retry").click()
    await operator.page.get_by_role("dialog").wait_for()
    found["dialog"] = await serious(operator)
    await stranger.page.goto(f"{stranger.stage.url}/ops/login/")
    found["login"] = await serious(stranger)
    assert {name: serious for name, serious in found.items() if serious} == {}


async def test_dark_is_dark_and_light_is_light(
    stage: Stage, browser: Browser, unused: list[ServerId], session: StorageState
) -> None:
    async with at_browser(stage, browser, unused, session, color_scheme="light") as operator:
        await operator.open()
        lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        light = await operator.page.evaluate(lightness)
        await operator.page.emulate_media(color_scheme="dark")
        dark = await operator.page.evaluate(lightness)
        assert min(light) > 220
        assert max(dark) < 60


async def test_no_page_is_wider_than_a_phone_and_all_of_it_can_be_pressed(
    stage: Stage, browser: Browser, unused: list[ServerId], session: StorageState, paths: Paths
) -> None:
    async with at_browser(stage, browser, unused, session, viewport=PHONE, has_touch=True) as operator:
        wide = {}
        for name, path in paths.items():
            await operator.open(path)
            wide[name] = await operator.page.evaluate("document.documentElement.scrollWidth")
        assert {name: width for name, width in wide.items() if width > PHONE["width"]} == {}
        await operator.open(paths["job, stranded"])
        await operator.page.get_by_role("button", name="Mark as resolved").tap()
        await expect(operator.page.get_by_role("dialog").get_by_label("Reason")).to_be_in_viewport()


async def test_a_page_weighs_little_and_needs_nothing_from_elsewhere(operator: Operator, paths: Paths) -> None:
    wire = await operator.page.context.new_cdp_session(operator.page)
    await wire.send("Network.enable")
    await wire.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[float] = []
    wire.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    weights = {}
    for name, path in paths.items():
        sizes.clear()
        await operator.open(path)
        weights[name] = sum(sizes)
    assert {name: weight for name, weight in weights.items() if weight > WEIGHT_MAX} == {}
    assert min(weights.values()) > 0


async def test_hostile_text_is_shown_as_text(operator: Operator, paths: Paths) -> None:
    for name in ("overview", "jobs", "job, waiting", "nodes", "node", "servers", "server"):
        await operator.open(paths[name])
        await expect(operator.page.locator("main")).to_contain_text(HOSTILE if name != "overview" else "paused")
        assert await operator.page.evaluate("window.hostile") is None, name
        assert await operator.page.locator("main img").count() == 0, name
    await operator.page.goto(f"{operator.stage.url}/ops/jobs/?text=%3Cscript%3Ewindow.hostile%3D1%3C/script%3E")
    await expect(operator.page.get_by_label("Text")).to_have_value("<script>window.hostile=1</script>")
    assert await operator.page.evaluate("window.hostile") is None


async def focus(operator: Operator) -> str:
    return str(await operator.page.evaluate("document.activeElement.textContent.trim()"))


async def tab_to(operator: Operator, text: str) -> None:
    for _ in range(60):
        await operator.page.keyboard.press("Tab")
        if await focus(operator) == text:
            return
    raise AssertionError(f"no {text} within 60 tabs")


async def test_a_keyboard_is_enough(stranger: Operator) -> None:
    page, stage = stranger.page, stranger.stage
    server_id = stranger.a_server()
    stranger.node.befall(Rule(effect=Effect.SNAPSHOT_DISK, server_id=server_id, fails=True))
    job = await stage.ended(await stage.create(server_id))
    stranger.node.befall()
    await page.goto(f"{stage.url}/ops/jobs/{job.id}/")
    await page.locator("input:focus").wait_for()  # a page has been loaded before its field has the focus
    await page.keyboard.insert_text((await stage.new_operator()).secret)
    await page.keyboard.press("Enter")
    await stranger.is_live()
    await page.keyboard.press("Tab")
    assert await focus(stranger) == "Skip to content"
    await tab_to(stranger, "Retry")
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.keyboard.press("Space")
    await page.get_by_role("dialog").wait_for()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    assert await focus(stranger) == "Retry"
    await page.keyboard.press("Enter")
    await page.get_by_role("dialog").wait_for()
    await page.keyboard.press("Shift+Tab")  # from what does nothing to what does it
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text("retried as job")
    await page.keyboard.press("g")
    await page.keyboard.press("n")
    await expect(page).to_have_url(re.compile("/ops/nodes/$"))
