"""The whole service as processes, on the simulated hypervisor."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deploy.demo.service import Driver, Service, free_port
from deploy.demo.state import State
from tests.conftest import needs


@asynccontextmanager
async def running(state: State) -> AsyncIterator[Service]:
    needs("redis-server")
    service = Service(state, port=free_port(), driver=Driver.FAKE, quiet=True)
    try:
        await service.start()
        yield service
    finally:
        await service.stop()
