"""A short campaign: `make fuzz` plays long ones."""

from pathlib import Path

from tests.fuzz.__main__ import play


async def test_no_request_at_random_gets_a_5xx_or_no_answer(tmp_path: Path) -> None:
    tally = await play(tmp_path / "state", count=1500, seed=1)
    assert tally.violations == [], tally.text()
    assert tally.statuses[201] > 5
    assert tally.statuses[404] > 50
