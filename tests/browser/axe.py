"""Accessibility violations that axe finds on a page, in light mode, in dark mode and on a phone.

`AXE=all` checks each page with all rules in each look (`make test-axe`). Without it, rules whose result cannot differ
are skipped: a look changes colors and layout, and pages of one kind share both.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, ViewportSize

ALL = os.environ.get("AXE") == "all"
WIDE, PHONE = ViewportSize(width=1280, height=720), ViewportSize(width=390, height=844)
COLORS: Mapping[str, Any] = {"runOnly": ["color-contrast"]}
WITHOUT_COLORS: Mapping[str, Any] = {"rules": {"color-contrast": {"enabled": False}}}
Look = tuple[ViewportSize, Literal["light", "dark"], Mapping[str, Any]]  # with the rules; none: all rules
LOOKS: Mapping[str, Look] = {
    "light": (WIDE, "light", {}),
    "dark": (WIDE, "dark", {} if ALL else COLORS),
    "phone": (PHONE, "light", {}),
}
STRUCTURE: Mapping[str, Look] = LOOKS if ALL else {"light": (WIDE, "light", WITHOUT_COLORS)}


async def findings(page: Page, looks: Mapping[str, Look] = LOOKS) -> list[str]:
    found = []
    for name, (viewport, scheme, rules) in looks.items():
        await page.set_viewport_size(viewport)
        await page.emulate_media(color_scheme=scheme)
        answer: dict[str, Any] = (await Axe().run(page, options={"resultTypes": ["violations"], **rules})).response
        found += [
            f"{name}, {one['id']}: {node['target']} {node.get('failureSummary', '')}"
            for one in answer["violations"]
            for node in one["nodes"]
        ]
    return found
