"""Questions that an operator asks at night, and the steps from the dashboard's overview to each answer."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from playwright.async_api import Page, expect

CLICKS_MAX = 3  # for each question


@dataclass(kw_only=True)
class Asking:
    """An operator who is looking for an answer. `facts`: the subjects of the questions, by name."""

    page: Page
    facts: Mapping[str, str]
    clicks: int = 0


Step = Callable[[Asking], Awaitable[None]]


def press(name: str, *, role: str = "link", within: str = "body") -> Step:
    """Press a button or a link: a click."""

    async def do(asking: Asking) -> None:
        place = asking.page.locator(within.format(**asking.facts))
        await place.get_by_role(role, name=name.format(**asking.facts)).first.click()  # type: ignore[arg-type] # a literal where it is given
        asking.clicks += 1

    return do


def enter(label: str, text: str) -> Step:
    """Enter text and press Enter, which counts as a click."""

    async def do(asking: Asking) -> None:
        field = asking.page.get_by_label(label, exact=True).first
        await field.fill(text.format(**asking.facts))
        await field.press("Enter")
        asking.clicks += 1

    return do


def choose(label: str, option: str) -> Step:
    """Choose a filter's option: a click."""

    async def do(asking: Asking) -> None:
        await asking.page.get_by_label(label).select_option(option)
        asking.clicks += 1

    return do


def fill(label: str, text: str) -> Step:
    """Fill in text in a dialog."""

    async def do(asking: Asking) -> None:
        await asking.page.get_by_role("dialog").get_by_label(label).fill(text)

    return do


def press_moment(chart: str, moment: str) -> Step:
    """Click on a chart."""

    async def do(asking: Asking) -> None:
        data = json.loads(await asking.page.locator(f"#chart-{chart}").get_attribute("data-chart") or "")
        first, last = data["times"][0], data["times"][-1] + data["step"]
        plot = asking.page.locator(f"#chart-{chart} [role=slider]")
        box = await plot.bounding_box()
        assert box
        at = datetime.fromisoformat(asking.facts[moment]).timestamp() // data["step"] * data["step"]
        await plot.click(position={"x": box["width"] * (at - first) / (last - first), "y": 5})
        asking.clicks += 1

    return do


def see(text: str, *, within: str = "main") -> Step:
    async def do(asking: Asking) -> None:
        place = asking.page.locator(within.format(**asking.facts)).first
        await expect(place).to_contain_text(text.format(**asking.facts))

    return do


# Each starts on the overview.
QUESTIONS: Mapping[str, tuple[Step, ...]] = {
    "why is customer 77's restore stuck?": (
        press("{restore}", within="#running"),
        see("safeguarding running", within=".steps .now"),
    ),
    "which node is unhealthy?": (
        see("{silent}", within="#alarms"),
        press("not responding", within="#alarms"),
        see("silent", within="#node-{silent}"),
    ),
    "what happened last night at two?": (
        press_moment("ended", "night"),
        see("completed", within="{then}"),
    ),
    "retry all that a node broke, once": (
        press("{broken}: 2", within="#alarms"),
        press("Retry all matching", role="button"),
        see("Retry 2 jobs?", within="dialog"),
        press("Retry", role="button", within="dialog"),
        see("2 retried, 0 refused", within="#notice"),
        see("retried as", within="#job-{first}"),
        see("retried as", within="#job-{second}"),
    ),
    "drain a node": (
        press("Nodes", within="nav"),
        press("Pause {drained}", role="button"),
        fill("Reason", "a new kernel"),
        press("Pause", role="button", within="dialog"),
        see("paused", within="#node-{drained}"),
    ),
    "who deleted a snapshot?": (
        enter("Find by ID or name", "snapshot {deleted}"),
        see("{customer}", within="main tr:has-text('deleted')"),
    ),
    "what will run tonight?": (
        press("Schedules", within="nav"),
        see("tonight-", within="#schedule-{schedule}"),
    ),
    "how long is the longest guest off?": (see(" s", within="#off tbody [data-clock]"),),
    "which servers have no snapshot younger than a week?": (
        press("Servers", within="nav"),
        choose("No snapshot for", "7 days"),
        see("{unsaved}", within="#server-{unsaved}"),
    ),
    "is the store in trouble?": (
        see("Redis is", within="#alarms"),
        press("Redis is", within="#alarms"),
        see("VpsSnapshotsStoreNearlyFull", within=":target"),
    ),
}


async def answer(asking: Asking, steps: tuple[Step, ...]) -> list[float]:
    """Answer the question from the open overview. Returns the seconds of each step, with the page that it waits for."""
    seconds = []
    for step in steps:
        began = time.perf_counter()
        await step(asking)
        seconds.append(time.perf_counter() - began)
    return seconds
