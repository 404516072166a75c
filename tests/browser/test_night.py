"""Urgent situations at night: a guest that is off, a server that needs repair, nodes to drain."""

import re

import pytest
from playwright.async_api import expect

from drivers.fake_faults import Effect, Rule
from tests.browser.conftest import Operator
from tests.browser.stage import running
from tests.browser.test_work import press

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_a_stranded_server_is_taken_and_its_time_runs_on(operator: Operator) -> None:
    server, page = operator.a_server(), operator.page
    operator.node.befall(Rule(effect=Effect.START, server_id=server, fails=True))
    job = await operator.stage.create(server)
    await operator.stage.ended(job)
    operator.node.befall()
    await operator.open(f"servers/{server}/")
    await expect(page.get_by_role("group", name="Cause")).to_contain_text("Cannot allocate memory")
    await press(operator, "I'm on it", answer="I'm on it")
    await expect(page.locator("#live")).to_contain_text("took it")
    await expect(page.get_by_role("button", name="Release", exact=True)).to_be_visible()

    await operator.open()
    await expect(page.locator(f"#stranded-{server}")).to_contain_text("Olga")
    await expect(page.locator(f"#off-{server} [data-clock]")).to_be_visible()
    # outside of what the server refreshes: only the page itself can continue the counter
    await page.evaluate(
        "document.body.append(Object.assign(document.createElement('p'), {id: 'clock', textContent: '59 min 59 s'}));"
        "document.getElementById('clock').dataset.clock = '3599'"
    )
    await expect(page.locator("#clock")).to_have_text("1 h 00 min")

    await operator.open(f"servers/{server}/")
    await press(operator, "Mark as resolved", answer="Mark as resolved", reason="started by hand")
    await expect(page.get_by_role("button", name="Release", exact=True)).to_be_hidden()


async def test_selected_nodes_are_drained_until_their_hosts_are_back_and_resumed(operator: Operator) -> None:
    page, name = operator.page, "hv-3"  # a separate node: on the others, jobs of other tests may still be running
    await operator.stage.start_node(name, [running(70_301, "spare")])
    await operator.open("nodes/")
    await page.locator(f"#pick-{name}").check()
    await page.get_by_role("button", name="Pause selected (drain)").click()
    question = page.get_by_role("dialog")
    await question.get_by_label("Reason").fill("kernel upgrade")
    await question.get_by_label("Resume when its host has rebooted").check()
    await question.get_by_role("button", name="Pause", exact=True).click()
    row = page.locator(f"#node-{name}")
    await expect(row).to_contain_text("until its host has rebooted")
    await expect(row).to_contain_text("drained")
    await expect(page.locator("#live")).to_contain_text(re.compile("paused nodes? (is|are) drained"))
    await page.locator(f"#pick-{name}").check()
    await page.get_by_role("button", name="Resume selected").click()
    await question.get_by_label("Reason").fill("done")
    await question.get_by_role("button", name="Resume", exact=True).click()
    await expect(row.get_by_text("alive")).to_be_visible()
