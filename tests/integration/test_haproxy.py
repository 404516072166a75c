"""HAProxy before a front end, with deploy/examples/haproxy.cfg and its restriction of the operators' pages."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientConnectorError, ClientSession
from yarl import URL

from deploy.demo.service import free_port
from tests.conftest import needs
from tests.integration.conftest import Cell
from tests.integration.front_end import FrontEnd, serving
from tests.integration.test_nginx import CALL, OF_OPERATORS
from tests.queueing import until_told

EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "haproxy.cfg"


@pytest.fixture
async def api(cell: Cell) -> AsyncIterator[FrontEnd]:
    async with serving(cell) as front_end:
        yield front_end


@pytest.mark.parametrize(("network", "is_allowed"), [("10.20.0.0/24", False), ("127.0.0.0/8", True)])
async def test_only_the_operators_network_reaches_the_dashboard(
    api: FrontEnd, tmp_path: Path, network: str, *, is_allowed: bool
) -> None:
    needs("haproxy")
    port = free_port()
    text = EXAMPLE.read_text()
    changes = [("#   http-request deny", "http-request deny"), ("10.20.0.0/24", network)]
    changes += [("127.0.0.1:8079", f"127.0.0.1:{port}"), ("127.0.0.1:8080", f"127.0.0.1:{api.port}")]
    for example, ours in changes:
        assert text.count(example) == 1, example
        text = text.replace(example, ours)
    if os.getuid():
        text = re.sub(r"^ +(user|group|chroot) .*\n", "", text, flags=re.MULTILINE)  # only root can do that
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace("    server second 127.0.0.1:8081\n", ""))
    process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(file))
    try:
        async with ClientSession() as client:

            async def status(path: str) -> int:
                url = URL(f"http://127.0.0.1:{port}{path}", encoded=True)
                async with client.get(url, allow_redirects=False) as answer:
                    return answer.status

            async def is_up() -> bool:
                with suppress(ClientConnectorError):
                    return await status("/readyz") == 200
                return False

            await until_told(is_up)
            assert Path(f"/proc/{process.pid}").stat().st_uid != 0
            found = {path: await status(path) for path in (*OF_OPERATORS, CALL, "/docs")}
    finally:
        process.kill()
        await process.wait()
    refused = {path for path, status in found.items() if status == 403}
    assert refused == (set() if is_allowed else {*OF_OPERATORS} - {"//ops/jobs/"})
    assert found["//ops/jobs/"] == 404  # HAProxy forwards it, and the front end has nothing there
    assert (found[CALL], found["/docs"]) == (401, 200)
