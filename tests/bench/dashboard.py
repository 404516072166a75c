"""How long an operator with a real browser needs to answer typical questions, in a cell with many jobs:
`make bench-dashboard N=1000000`. A step is a click or a search, including the page that it waits for."""

import json
import os

import uvloop

from tests.bench.ops import fill
from tests.browser import night
from tests.browser.conftest import PATIENCE_MS, chromium, log_in
from tests.browser.questions import QUESTIONS, Asking, answer
from tests.browser.stage import staged

DEFAULT = 1_000_000  # jobs


async def main(jobs: int) -> None:
    async with staged() as stage, chromium() as browser:
        await fill(stage, jobs)
        facts = {**await night.befall(stage), "then": "tbody"}  # many ended at that time: any row of the first page
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        await log_in(page, stage, (await stage.new_operator()).secret)
        print(f"{'seconds':<44}{'clicks':>8}{'slowest step':>14}{'all':>8}")
        rows = []
        for question, steps in QUESTIONS.items():
            await page.goto(f"{stage.url}/ops/")
            await page.locator("#connection[data-state=live]").wait_for()
            asking = Asking(page=page, facts=facts)
            seconds = await answer(asking, steps)
            print(f"{question:<44}{asking.clicks:>8}{max(seconds):>14.2f}{sum(seconds):>8.2f}", flush=True)
            rows.append({"question": question, "clicks": asking.clicks, "step_seconds": seconds})
        print(json.dumps({"jobs": jobs, "rows": rows}))


if __name__ == "__main__":
    uvloop.run(main(int(os.environ.get("N") or DEFAULT)))
