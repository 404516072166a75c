"""Redis compiles every script in each of its forms, and an error of one names it."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.integration.conftest import Cell
from tests.unit.test_scripts import SCRIPTS
from worker.store import scripts
from worker.store.errors import StoreUnavailable

INNER = [name for name in SCRIPTS if name not in {scripts.ENTER, scripts.ENTER_AS_NODE}]
FORMS = {
    "alone": [(name, scripts.text(name)) for name in INNER],
    "entered": [(name, scripts.entered(name)) for name in INNER],
    "when full": [(name, scripts.when_full(name)) for name in INNER if scripts.runs_when_full(name)],
}


@pytest.mark.parametrize("form", FORMS)
async def test_every_script_compiles(redis: Redis, form: str) -> None:
    failed = {}
    for name, text in FORMS[form]:
        try:
            await redis.script_load(text)
        except ResponseError as error:
            failed[name] = str(error)
    assert failed == {}


@pytest.mark.parametrize("error", ["no_such_function()", "local x = = 1"])
async def test_an_error_in_a_script_names_the_script_and_the_line(
    cell: Cell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    name = "customers/job"
    broken = f"{scripts.source(name)}\nif ask then {error} end\n"
    monkeypatch.setitem(scripts._FILES, name, broken)
    scripts.text.cache_clear()
    scripts.entered.cache_clear()
    try:
        with pytest.raises(StoreUnavailable):
            await cell.job(await cell.create())
    finally:
        monkeypatch.undo()
        scripts.text.cache_clear()
        scripts.entered.cache_clear()
    assert f"in the script {name}, line: if ask then {error} end" in capsys.readouterr().out
