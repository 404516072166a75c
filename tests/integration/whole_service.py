"""The whole service as processes with the simulated hypervisor."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import ClientSession

from deploy.demo.service import Service, free_port
from deploy.demo.state import State
from tests.conftest import needs
from worker.settings import Driver


@asynccontextmanager
async def running(state: State) -> AsyncIterator[Service]:
    needs("redis-server")
    service = Service(state, port=free_port(), driver=Driver.FAKE)
    try:
        await service.start()
        yield service
    finally:
        await service.stop()


async def fetched(url: str) -> str:
    """The response that a browser or Prometheus gets, read to its end: unread, it causes a warning in a later test."""
    async with ClientSession() as session, session.get(url) as answer:
        assert answer.status == 200, url
        return await answer.text()
