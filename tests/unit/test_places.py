"""Slots of event streams, also if several processes share them."""

import os
import signal
from collections.abc import Iterator

import pytest

from api.events.places import Places
from worker.store.model import AccountId

ONE, OTHER = AccountId(77), AccountId(2**53 - 1)


@pytest.fixture
def file() -> Iterator[int]:
    file = os.memfd_create("places")
    yield file
    os.close(file)


def test_an_account_has_so_many_whatever_others_have() -> None:
    places = Places(per_account=2, of_operators=1)
    first, second = places.take(ONE), places.take(ONE)
    assert first is not None
    assert second is not None
    assert places.take(ONE) is None
    assert places.take(OTHER) is not None
    assert places.take(None) is not None
    assert places.take(None) is None
    places.free(first)
    assert places.take(ONE) == first


def test_all_processes_together_have_so_many_until_one_dies(file: int) -> None:
    ready, told = os.pipe()
    if not (pid := os.fork()):
        theirs = Places(per_account=3, of_operators=1, file=file)
        taken = [theirs.take(ONE), theirs.take(ONE), theirs.take(None)]
        os.write(told, bytes(place is not None for place in taken))
        signal.pause()
    try:
        assert os.read(ready, 3) == b"\1\1\1"
        places = Places(per_account=3, of_operators=1, file=file)
        last = places.take(ONE)
        assert last is not None
        assert places.take(ONE) is None
        assert places.take(None) is None
        assert places.take(OTHER) is not None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert [places.take(ONE) is not None for _ in range(3)] == [True, True, False]
    assert places.take(None) is not None
