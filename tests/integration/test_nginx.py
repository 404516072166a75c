"""nginx before a front end, with the configuration of docs/operations/configure.md."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import ClientConnectorError, ClientResponse, ClientSession, ClientTimeout
from yarl import URL

from deploy.demo.service import free_port
from tests.conftest import needs
from tests.integration.conftest import Cell
from tests.integration.front_end import FrontEnd, serving
from tests.integration.test_streams import Stream
from tests.operations.pages import blocks, text_of
from tests.queueing import until_told
from tests.sentinel import certificate

OF_OPERATORS = ("/ops/", "/ops", "//ops/jobs/", "/%6fps/events/", "/docs/operators/", "/docs/operators-nodes/")
CALL = "/api/v1/ops/overview/"
Get = Callable[[str], AbstractAsyncContextManager[ClientResponse]]


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell, trusted_proxies=("127.0.0.1/32",)) as front_end:
        yield front_end


@asynccontextmanager
async def behind_nginx(api: FrontEnd, folder: Path, *changes: tuple[str, str]) -> AsyncIterator[Get]:
    """Yields a function that gets a path through nginx, started with the page's block and these changes in it."""
    needs("nginx")
    needs("openssl")
    certificate(folder, "HOST", "DNS:localhost")
    (block,) = [block.text for block in blocks("configure") if block.language == "nginx"]
    port = free_port()
    here = [("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"), ("server_name HOST", "server_name localhost")]
    here += [("/etc/nginx/HOST.crt", f"{folder}/HOST.pem"), ("/etc/nginx/HOST.key", f"{folder}/HOST.key")]
    for example, ours in (*here, ("127.0.0.1:8080", f"127.0.0.1:{api.port}"), *changes):
        assert example in block
        block = block.replace(example, ours)
    paths = [f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
    http = "\n".join(["access_log off;", *paths, block])
    file = folder / "nginx.conf"
    file.write_text(f"daemon off;\nmaster_process off;\npid {folder}/pid;\nevents {{}}\nhttp {{\n{http}}}\n")
    trusted = ssl.create_default_context(cafile=str(folder / "HOST.pem"))
    process = await asyncio.create_subprocess_exec("nginx", "-e", f"{folder}/log", "-c", str(file))
    try:
        async with ClientSession(headers={"Authorization": f"Bearer {api.token}"}) as client:

            def get(path: str) -> AbstractAsyncContextManager[ClientResponse]:
                url = URL(f"https://localhost:{port}{path}", encoded=True)
                return client.get(url, ssl=trusted, allow_redirects=False, timeout=ClientTimeout(total=60))

            async def is_up() -> bool:
                with suppress(ClientConnectorError):
                    async with get("/readyz") as answer:
                        return answer.status == 200
                return False

            await until_told(is_up)
            yield get
    finally:
        process.kill()
        await process.wait()


async def test_calls_and_events_pass(api: FrontEnd, tmp_path: Path) -> None:
    async with behind_nginx(api, tmp_path) as get:
        async with get("/api/v1/snapshots/") as answer:
            assert answer.status == 200
            assert "max-age" in answer.headers["Strict-Transport-Security"]
        async with get("/api/v1/events/") as response:
            stream = Stream(response)
            await stream.block()
            created = await api.create()
            event = json.loads((await stream.event())["data"])  # a buffer would keep it
    assert event["job_id"] == created.headers["X-Job-Id"]


ALSO_CALLS = ("^/(ops|docs/operators)", "^/(ops|docs/operators|api/v1/ops)")


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ([], OF_OPERATORS),
        ([ALSO_CALLS], (*OF_OPERATORS, CALL)),
        ([("10.20.0.0/24", "127.0.0.0/8")], ()),
    ],
    ids=["from elsewhere", "with the calls", "from the operators' network"],
)
async def test_only_the_operators_network_reaches_the_dashboard(
    api: FrontEnd, tmp_path: Path, changes: Sequence[tuple[str, str]], refused: Sequence[str]
) -> None:
    if ALSO_CALLS in changes:
        assert f"`{ALSO_CALLS[1]}`" in text_of("configure")
    async with behind_nginx(api, tmp_path, *changes) as get:
        found = set()
        for path in (*OF_OPERATORS, CALL, "/docs", "/api/v1/openapi.json"):
            async with get(path) as answer:
                text = await answer.text()
            if answer.status == 403 and "nginx" in text:  # our own answers have a code
                found.add(path)
    assert found == {*refused}
