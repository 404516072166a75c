"""One suite for every driver: `bench` is each of them in turn."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.lab.guest import GuestImage, GuestNotBuilt, guest_image
from tests.conftest import lacking, needs
from tests.contract.harness import Bench, FakeBench
from tests.contract.kvm_bench import KvmBench


@pytest.fixture(params=["fake", "kvm"])
def bench(request: pytest.FixtureRequest) -> Bench:
    found: Bench = request.getfixturevalue(f"{request.param}_bench")
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def fake_bench(tmp_path: Path) -> AsyncIterator[FakeBench]:
    bench = FakeBench(tmp_path)
    yield bench
    await bench.close()


@pytest_asyncio.fixture(loop_scope="session")
async def kvm_bench(node: KvmBench) -> AsyncIterator[KvmBench]:
    yield node
    await node.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def node() -> AsyncIterator[KvmBench]:
    for program in ("qemu-system-x86_64", "qemu-img", "qemu-io", "setpriv"):
        needs(program)
    async with KvmBench.running(_image()) as bench:
        yield bench


def _image() -> GuestImage:
    try:
        return guest_image()
    except GuestNotBuilt as error:
        lacking(f"the test guest can't be built here: {error}")
