"""A real Prometheus scrapes a real run: each query of the dashboard and each rule returns data."""

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession
from redis.asyncio import Redis

from deploy.demo.processes import Child
from deploy.demo.service import free_port
from tests.conftest import RedisServer, needs
from tests.dashboard import DASHBOARD, expressions
from tests.integration.scraping import Scraped, scraped
from tests.queueing import until_told

DEPLOY = Path(__file__).parents[2] / "deploy"
ROUNDS_SECONDS = 90  # of jobs, until each query has data; two rounds are enough


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    url: str
    client: ClientSession

    async def get(self, path: str, **query: str) -> Any:
        async with self.client.get(f"{self.url}/{path}", params=query) as answer:
            body = await answer.json()
        assert body["status"] == "success", body
        return body["data"]

    async def values(self, expression: str) -> list[float]:
        found = await self.get("api/v1/query", query=expression)
        return [float(series["value"][1]) for series in found["result"]]

    async def is_up(self) -> bool:
        try:
            async with self.client.get(f"{self.url}/-/ready") as answer:
                return answer.status == HTTPStatus.OK
        except ClientError:
            return False


@asynccontextmanager
async def prometheus(folder: Path, run: Scraped) -> AsyncIterator[Prometheus]:
    """With the example configuration, for this run and with shorter intervals."""
    needs("prometheus")
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    here = {"front-end-1:8080": f"127.0.0.1:{run.front_end.port}", "10.20.0.21:9752": f"127.0.0.1:{run.worker_port}"}
    here |= {'"gateway-1:9753", "gateway-2:9753"': f'"127.0.0.1:{run.gateway_port}"'}
    for example, ours in ({"15s": "1s"} | here).items():
        assert example in text
        text = text.replace(example, ours)
    folder.mkdir()
    (folder / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", folder)
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    child = await Child.start("Prometheus", command, settings={}, log=folder / "log")
    try:
        server = Prometheus(url=f"http://127.0.0.1:{port}", client=run.front_end.client)
        await until_told(server.is_up)
        yield server
    finally:
        await child.stop()


async def test_every_query_of_the_dashboard_has_something_to_show(
    redis: Redis, redis_server: RedisServer, tmp_path: Path
) -> None:
    async with scraped(redis_server, tmp_path) as run, prometheus(tmp_path / "prometheus", run) as server:

        async def all_scraped() -> bool:
            return await server.values("sum(up)") == [3.0]

        await until_told(all_scraped)
        assert await server.values('up{job="vps-snapshots-worker", node="node-1"}') == [1.0]  # scraped at its address
        await _webhook_to_nowhere(run)
        asked, number = expressions(), 0
        async with asyncio.timeout(ROUNDS_SECONDS):
            while asked:  # a rate needs changes between two scrapes
                number += 1
                await run.round(number)
                asked = [(title, query) for title, query in asked if not await _shows(server, query)]

        async def stranding_fires() -> bool:  # the rules are evaluated once a second
            return await server.values('ALERTS{alertname="VpsSnapshotsServerStranded", alertstate="firing"}') == [1.0]

        await until_told(stranding_fires)
        await _rules_are_healthy(server)
        await _every_name_is_scraped(server)


async def _webhook_to_nowhere(run: Scraped) -> None:
    body = {"url": f"http://127.0.0.1:{free_port()}/hook"}
    assert (await run.front_end.call("POST", "/api/v1/webhooks/", body=body)).status == HTTPStatus.CREATED


async def _shows(server: Prometheus, query: str) -> bool:
    return any(math.isfinite(value) for value in await server.values(query))


async def _rules_are_healthy(server: Prometheus) -> None:
    groups = (await server.get("api/v1/rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 20
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    alerts = (await server.get("api/v1/alerts"))["alerts"]
    assert not [alert for alert in alerts if "error expanding" in json.dumps(alert)]


async def _every_name_is_scraped(server: Prometheus) -> None:
    """This includes names that a rule uses only when there is a problem."""
    scraped_names = set(await server.get("api/v1/label/__name__/values"))
    texts = [(DEPLOY / "prometheus" / "rules.yml").read_text(), json.dumps(DASHBOARD)]
    assert _names(texts) - scraped_names == set()


def _names(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for name in re.findall(r"\bvps_snapshots[_:][a-z0-9_:]+", text)}
