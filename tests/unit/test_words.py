"""Durations, ages, sizes and counts read the same in the dashboard and the command line."""

from datetime import UTC, datetime, timedelta

import pytest

from api import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0 s"), (0.04, "< 0.1 s"), (0.42, "0.4 s"), (1, "1 s"), (42.4, "42 s")),
        *((185, "3 min 05 s"), (7805, "2 h 10 min"), (356_400, "4 d 3 h")),
    ],
)
def test_a_span_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert words.span(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "now"), (42, "42 s ago"), (200, "3 min ago"), (-7300, "in 2 h")])
def test_a_time_is_shown_in_one_unit(seconds: float, text: str) -> None:
    assert words.ago(datetime.now(UTC) - timedelta(seconds=seconds)) == text


def test_an_age_is_not_negative() -> None:
    assert words.age(datetime.now(UTC) + timedelta(seconds=60)) == "0 s"


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "512 B"), (5 << 30, "5 GiB"), (1536, "1.5 KiB"), (347 << 30, "347 GiB"), (3 << 40, "3.0 TiB")],
)
def test_a_size_is_in_the_largest_unit_that_fits(count: int, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("count", "noun", "text"), [(1, "job", "1 job"), (1200, "job", "1,200 jobs"), (0, "entry", "0 entries")]
)
def test_a_count_has_its_noun_in_the_right_number(count: int, noun: str, text: str) -> None:
    assert words.plural(count, noun) == text
