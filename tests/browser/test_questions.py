"""Each question is answered within three clicks from the overview."""

from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.browser import night
from tests.browser.conftest import Operator
from tests.browser.questions import CLICKS_MAX, QUESTIONS, Asking, answer
from tests.browser.stage import Stage

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def facts(stage: Stage) -> AsyncIterator[Mapping[str, str]]:
    yield await night.befall(stage)
    await stage.redis.config_set("maxmemory", 0)
    await stage.redis.delete(night.PADDING)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_question_is_answered_in_three_clicks(
    operator: Operator, facts: Mapping[str, str], question: str
) -> None:
    await operator.open()
    asking = Asking(page=operator.page, facts=facts)
    await answer(asking, QUESTIONS[question])
    assert asking.clicks <= CLICKS_MAX, f"{question} {asking.clicks} clicks"
