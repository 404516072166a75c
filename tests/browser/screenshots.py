"""The screenshots in the documents: `make screenshots` writes each page, light and dark, to docs/screenshots/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvloop
from PIL import Image
from playwright.async_api import Browser, Page, ViewportSize

from tests.browser.conftest import chromium, log_in
from tests.browser.scene import BROKEN, ODD, PAUSED, Scene
from tests.browser.stage import Stage, staged
from worker.store.calls import Cursor
from worker.store.model import JobKind, JobState
from worker.store.operators.operator_store import JobFilter

FOLDER = Path("docs/screenshots")
WIDE, PHONE = ViewportSize(width=1360, height=850), ViewportSize(width=390, height=844)
COLORS = 256
Scheme = Literal["light", "dark"]
SCHEMES: tuple[Scheme, ...] = ("light", "dark")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """`press`: the button to press before. `is_whole`: the whole page, not only the visible part."""

    name: str
    path: str
    press: str = ""
    is_whole: bool = False
    on_phone: bool = False


async def pictures(stage: Stage) -> list[Picture]:
    operators, first = stage.operators, Cursor(limit=1)
    (stranded,) = (await operators.servers(node=None, account_id=None, stranded=True, cursor=first)).results
    running = JobFilter(state=JobState.IN_PROGRESS, kind=JobKind.RESTORE)
    (restore,) = (await operators.jobs(running, first)).results
    (odd,) = (await operators.servers(node=ODD, account_id=None, stranded=False, cursor=first)).results
    return [
        Picture(name="overview", path="", is_whole=True, on_phone=True),
        Picture(name="jobs", path="jobs/"),
        Picture(name="job-stranded", path=f"jobs/{stranded.stranded_by}/", is_whole=True, on_phone=True),
        Picture(name="job-in-progress", path=f"jobs/{restore.id}/"),
        Picture(name="resolve", path=f"jobs/{stranded.stranded_by}/", press="Mark as resolved"),
        Picture(name="nodes", path="nodes/"),
        Picture(name="node", path=f"nodes/{PAUSED}/"),
        Picture(name="pause", path=f"nodes/{BROKEN}/", press="Pause (drain)"),
        Picture(name="servers", path="servers/"),
        Picture(name="server", path=f"servers/{odd.view.server.id}/"),
        Picture(name="findings", path="findings/"),
        Picture(name="audit", path="audit/"),
        Picture(name="tokens", path="tokens/"),
        Picture(name="token-new", path="tokens/", press="New token"),
    ]


async def take(page: Page, stage: Stage, picture: Picture, file: Path) -> None:
    await page.goto(f"{stage.url}/ops/{picture.path}")
    await page.locator("#connection[data-state=live]").wait_for()
    if picture.press:
        await page.get_by_role("button", name=picture.press).click()
        await page.get_by_role("dialog").wait_for()
    await page.screenshot(path=file, full_page=picture.is_whole, animations="disabled")


async def take_all(browser: Browser, scene: Scene, stage: Stage, scheme: Scheme) -> None:
    for size, ending in ((WIDE, ""), (PHONE, "-phone")):
        context = await browser.new_context(color_scheme=scheme, viewport=size)
        page = await context.new_page()
        if size is WIDE:
            await page.goto(f"{stage.url}/ops/")
            await page.screenshot(path=FOLDER / f"login-{scheme}.png")
        await log_in(page, stage, scene.secret)
        for picture in await pictures(stage):
            if picture.on_phone or size is WIDE:
                await scene.dress()
                await take(page, stage, picture, FOLDER / f"{picture.name}{ending}-{scheme}.png")
        await context.close()


def make_small(file: Path) -> None:
    """Reduce the colors to as many as a viewer can distinguish."""
    with Image.open(file) as picture:
        few = picture.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, kmeans=4, dither=Image.Dither.NONE)
    few.save(file, optimize=True)


async def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    async with staged() as stage, chromium() as browser:
        scene = Scene(stage)
        await scene.play()
        for scheme in SCHEMES:
            await take_all(browser, scene, stage, scheme)
    files = sorted(FOLDER.glob("*.png"))
    for file in files:
        make_small(file)
    print(f"{len(files)} pictures, {sum(file.stat().st_size for file in files) // 1024} KiB, in {FOLDER}/")


if __name__ == "__main__":
    uvloop.run(main())
