"""Requirements of every page: safe with any text, small, and fit for keyboards, phones, dark mode and screen
readers."""

import json
import re
import time
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio
from playwright.async_api import Browser, StorageState, expect

from api.dashboard.overview import FEW_ALARMS
from api.dashboard.routes import PAGES, QUESTIONS
from api.dashboard.runbook import GUIDES
from drivers.fake_faults import Effect, Rule
from tests.browser.axe import LOOKS, PHONE, STRUCTURE, WIDE, findings
from tests.browser.conftest import Operator, at_browser, log_in
from tests.browser.stage import Stage, running, staged
from tests.queueing import until_told
from worker.store.model import ServerId
from worker.store.reports import NodeFacts, Pool

pytestmark = pytest.mark.asyncio(loop_scope="package")

HOSTILE = """<img src=x onerror="window.hostile=1"></td><script>window.hostile=1</script>"'&amp;{{7*7}}"""
HOSTILE_SERVER = 66_600
LONG_MS = 43_000_000  # nearly twelve hours
WEIGHT_MAX = 150_000  # bytes on the wire, including all resources of the page
Paths = Mapping[str, str]
ALTERNATIVES = re.compile(r"\{\w+:([^}]*)\}")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def paths(stage: Stage, unused: list[ServerId]) -> AsyncIterator[Paths]:
    """Every page, with content."""
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
    schedule = {"server_id": HOSTILE_SERVER, "name": "nightly", "when": "daily"}
    assert (await (await stage.customer()).call("POST", "/api/v1/schedules/", schedule)).status == 201
    by_label = {"server_labels": {"backup": "nightly"}, "name": "all", "when": "daily", "time_zone": "Europe/Berlin"}
    assert (await (await stage.customer()).call("POST", "/api/v1/schedules/", by_label)).status == 201
    await stage.operators.pause(hostile.name, by="Olga", reason=HOSTILE)
    waiting = await stage.create(HOSTILE_SERVER, "waits", HOSTILE)
    token = (await stage.new_operator("to be revoked")).token
    yield {
        "overview": "",
        "overview, week": "?window=7d",
        "jobs": "jobs/?limit=10",
        "jobs, none": "jobs/?text=nothing-has-this",
        "jobs, bad filter": "jobs/?state=lost&node=no/node&since=2025-01-16T16:15",
        "jobs, ended": "jobs/?ended_since=2025-01-16T16:15:00Z&ended_until=2025-01-16T16:20:00Z",
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
        "find, nothing yet": "find/",
        "snapshot": f"snapshots/{done.snapshot_id}/",
        "audit, logins": "audit/?what=logins",
        "findings": "findings/",
        "schedules": "schedules/",
        "audit": "audit/",
        "audit, none": "audit/?about=server+4711",
        "tokens": "tokens/",
        "nodes, paused": "nodes/?state=paused",
        "question, pause": "drain/?action=pause&nodes=node-1&nodes=node-2",
        "question": f"jobs/{jobs['stranded']}/resolve/",
        "question, forced": "jobs/bulk/?action=retry&all=true&state=failed&force=true",
        "question, of a job": f"jobs/{jobs['failed']}/retry/",
        "question, cancel": f"jobs/{waiting}/cancel/",
        "question, pause a node": "nodes/node-1/pause/",
        "question, resume": f"nodes/{hostile.name}/resume/",
        "question, reconcile": "nodes/node-1/reconcile/",
        "question, take": f"servers/{stranded}/take/",
        "question, release": f"servers/{stranded}/release/",
        "question, revoke": f"tokens/{token.id}/revoke/",
        "refused": f"jobs/{jobs['stranded']}/retry/",
        "new token": "tokens/new/",
        "not found": f"jobs/{'0' * 32}/",
        **{f"guide, {file}": path.removeprefix("/ops/") for path, file in GUIDES.items()},
    }


async def test_no_page_has_a_finding_of_axe_in_light_in_the_dark_and_on_a_phone(
    operator: Operator, stranger: Operator, paths: Paths
) -> None:
    found = {}
    for name, path in paths.items():
        await operator.open(path)
        # confirmations are one template, with different texts and fields
        found[name] = await findings(operator.page, STRUCTURE if name.startswith("question, ") else LOOKS)
    await operator.open(paths["job, failed"])
    await operator.page.get_by_role("button", name="Retry").click()
    await operator.page.get_by_role("dialog").wait_for()
    found["dialog"] = await findings(operator.page)
    await operator.page.keyboard.press("Escape")
    await operator.page.keyboard.press("?")
    found["keys"] = await findings(operator.page)
    await stranger.page.goto(f"{stranger.stage.url}/ops/login/")
    found["login"] = await findings(stranger.page)
    assert {name: some for name, some in found.items() if some} == {}


def patterns(route: str) -> list[str]:
    """The patterns of the paths below /ops/, with each alternative as a separate pattern."""
    path, given = route.removeprefix("/ops/"), ALTERNATIVES.search(route)
    ways = [ALTERNATIVES.sub(one, path, count=1) for one in given[1].split("|")] if given else [path]
    return [re.sub(r"\{\w+\}", "[^/]+", way) for way in ways]


async def test_every_page_is_checked(paths: Paths) -> None:
    seen = [path.partition("?")[0] for path in paths.values()]
    wanted = [pattern for route in PAGES | QUESTIONS for pattern in patterns(route)]  # type: ignore[operator] # both are dicts
    assert len(wanted) > len(PAGES) + len(QUESTIONS)
    assert [pattern for pattern in wanted if not any(re.fullmatch(pattern, path) for path in seen)] == []


async def test_the_pages_of_an_empty_cell_tell_the_first_step_and_have_no_finding_of_axe(browser: Browser) -> None:
    page, found = await browser.new_page(), {}
    async with staged() as stage:
        await log_in(page, stage, (await stage.new_operator()).secret)
        for path, step in {
            "": "deploy/install.sh node",
            "jobs/": "snapshot create SERVER NAME",
            "nodes/": "Install the worker",
            "servers/": "vps-snapshots-worker adopt",
            "findings/": "agree",
            "schedules/": "POST /api/v1/schedules/",
            "audit/": "snapshot create SERVER NAME",
            "find/": "What are you looking for?",
        }.items():
            await page.goto(f"{stage.url}/ops/{path}")
            await expect(page.locator("#live .empty").first).to_contain_text(step)
            found[path] = await findings(page)
    await page.close()
    assert {path: some for path, some in found.items() if some} == {}


async def test_the_duration_of_a_long_step_is_beside_its_bar(operator: Operator, paths: Paths) -> None:
    page, redis = operator.page, operator.stage.redis
    job_id = paths["job, in progress"].split("/")[1]
    steps = [json.loads(step) for step in await redis.lrange(f"job:{job_id}:steps", 0, -1)]  # type: ignore[misc] # redis-py: sync or async
    assert steps[-1]["step"] == "snapshotting"
    later = json.dumps(steps[-1] | {"ms": round(time.time() * 1000) - LONG_MS})
    await redis.lset(f"job:{job_id}:steps", -1, later)  # type: ignore[misc] # redis-py: sync or async
    for viewport in (WIDE, PHONE):
        await page.set_viewport_size(viewport)
        await operator.open(paths["job, in progress"])
        row = page.locator(".steps li.now")
        await expect(row).to_contain_text("11 h 5")
        text = await row.locator(".took").evaluate(
            "place => { const all = new Range(); all.selectNodeContents(place); return all.getBoundingClientRect(); }"
        )
        bar = await row.locator("progress").evaluate("bar => bar.getBoundingClientRect()")
        is_beside = text["right"] <= bar["left"] or text["bottom"] <= bar["top"]
        assert is_beside, (text, bar)


async def test_many_alarms_are_one_list(operator: Operator, paths: Paths) -> None:
    assert paths
    redis = operator.stage.redis
    pool = Pool(path="/full", free_bytes=1 << 30, total_bytes=900 << 30)
    facts = NodeFacts(worker="0.1.0", hypervisor="libvirt 9.0.0", emulator="QEMU 7.2.0", pools=(pool,))
    await redis.zadd("findings", {str(HOSTILE_SERVER): 1})
    alarms = operator.page.locator("#alarms li")

    async def are_one_list() -> bool:
        for name in ("node-1", "node-2"):  # each time, because the nodes report over it
            await redis.hset(f"node:{name}", "about", facts.model_dump_json())  # type: ignore[misc] # redis-py: sync or async
            await redis.zadd("nodes:by:free", {name: pool.free_bytes})
        await operator.open()
        texts = await alarms.all_inner_texts()
        borders = await alarms.evaluate_all("all => all.map(one => getComputedStyle(one).borderLeftWidth)")
        classes = await operator.page.locator("#alarms ul").evaluate_all("all => all.map(one => one.className)")
        low = [text for text in texts if "Storage is low on 2 nodes" in text and "node-1, node-2" in text]
        return (len(low), len(texts) > FEW_ALARMS, set(borders), classes) == (1, True, {"0px"}, ["many"])

    await until_told(are_one_list)
    await redis.zrem("findings", str(HOSTILE_SERVER))


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
    for name in ("overview", "jobs", "job, waiting", "nodes", "node", "servers", "server", "schedules"):
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
    await page.locator("input:focus").wait_for()  # the field gets the focus only after the page has loaded
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
    await page.keyboard.press("Shift+Tab")  # from the button that cancels to the button that acts
    await page.keyboard.press("Enter")
    await expect(page.locator("#notice")).to_contain_text("retried as job")
    await page.keyboard.press("g")
    await page.keyboard.press("n")
    await expect(page).to_have_url(re.compile("/ops/nodes/$"))
