"""The text that Prometheus reads: the metrics of this process, or of all processes of the front end with a label for
each."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

READ_SECONDS = 2.0  # the limit for one process to respond; Prometheus waits 10 s by default

log = structlog.get_logger()


class Exposition:
    """The metrics of a front end's only process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def read(self) -> Collector:
        return self._registry


class SharedExposition(Exposition):
    """Each process serves its metrics to the others at a socket in `folder`, which only their user can access."""

    def __init__(self, registry: CollectorRegistry, folder: Path, *, index: int, processes: int) -> None:
        super().__init__(registry)
        self._folder = folder
        self._index = index
        self._processes = processes

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        """Serve the metrics of this process while the application runs."""
        app = web.Application()
        app.router.add_get("/", self._show)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(self._socket(self._index))).start()
            yield
        finally:
            await runner.cleanup()

    async def read(self) -> Collector:
        """The merged metrics; a process that does not respond is left out."""
        texts = await asyncio.gather(*(self._text_of(index) for index in range(self._processes)))
        return await asyncio.to_thread(_Merged, texts)

    def _socket(self, index: int) -> Path:
        return self._folder / str(index)

    async def _show(self, _: web.Request) -> web.Response:
        return web.Response(body=await asyncio.to_thread(generate_latest, self._registry))

    async def _text_of(self, index: int) -> str:
        connector, timeout = UnixConnector(str(self._socket(index))), ClientTimeout(total=READ_SECONDS)
        try:
            async with (
                ClientSession(connector=connector, timeout=timeout) as client,
                client.get("http://-/", raise_for_status=True) as response,
            ):
                return await response.text()
        except (ClientError, OSError, TimeoutError) as error:
            log.warning("metrics.process_silent", process=index, error=type(error).__name__)
            return ""


class _Merged(Collector):
    """Samples of several processes, each with the label `process`."""

    def __init__(self, texts: list[str]) -> None:
        self._families: dict[str, Metric] = {}
        for index, text in enumerate(texts):
            for family in text_string_to_metric_families(text):
                merged = self._families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                merged.samples += [
                    each._replace(labels={**each.labels, "process": str(index)}) for each in family.samples
                ]

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()
