"""The pictures in the documents: `make screenshots` writes each page, light and dark, into docs/screenshots/."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvloop
from playwright.async_api import Browser, BrowserContext, StorageState

from tests.browser.conftest import chromium, logged_in
from tests.browser.scene import BROKEN, ODD, PAUSED, Scene
from tests.browser.stage import Stage, staged
from worker.jobs.model import JobState
from worker.jobs.ops import Cut, JobFilter

FOLDER = Path("docs/screenshots")
DESKTOP, PHONE = (1360, 850), (390, 844)
Scheme = Literal["light", "dark"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    name: str
    path: str
    on_phone: bool = False
    ask: str = ""  # the button that is pressed before


async def pictures(stage: Stage) -> list[Picture]:
    operators, first = stage.operators, Cut(limit=1)
    (stranded,) = (await operators.servers(node=None, account_id=None, stranded=True, cut=first)).results
    (running,) = (await operators.jobs(JobFilter(state=JobState.IN_PROGRESS), first)).results
    (odd,) = (await operators.servers(node=ODD, account_id=None, stranded=False, cut=first)).results
    return [
        Picture(name="login", path="login/"),
        Picture(name="overview", path="", on_phone=True),
        Picture(name="nodes", path="nodes/"),
        Picture(name="node", path=f"nodes/{PAUSED}/"),
        Picture(name="node-pause", path=f"nodes/{BROKEN}/", ask="Pause (drain)"),
        Picture(name="jobs", path="jobs/"),
        Picture(name="jobs-failed", path="jobs/?state=failed"),
        Picture(name="job", path=f"jobs/{stranded.stranded_by}/", on_phone=True),
        Picture(name="job-in-progress", path=f"jobs/{running.id}/"),
        Picture(name="servers", path="servers/"),
        Picture(name="server", path=f"servers/{odd.view.server.id}/"),
        Picture(name="findings", path="findings/"),
        Picture(name="audit", path="audit/"),
        Picture(name="tokens", path="tokens/"),
        Picture(name="token-new", path="tokens/", ask="New token"),
    ]
