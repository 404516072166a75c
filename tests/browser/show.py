"""`make scene`: a staged cell with incidents, to explore a dashboard with data, until Ctrl-C.

Environment variable: PORT (default 8080).
"""

import asyncio
import signal
import sys

from deploy.demo.run import OptionRefused, chosen_port, say
from deploy.demo.service import ServiceFailed, ensure_port_free
from tests.browser.scene import Scene
from tests.browser.stage import PORT, staged

_MANUAL = """
The cell is staged: {nodes} nodes with {servers} simulated servers and 29 days of jobs.
One node is paused, one does not respond, and one server is stranded.
  dashboard for operators: {url}/ops/, log in with {token}
  API documentation: {url}/docs
  command line: VPS_SNAPSHOTS_URL={url} VPS_SNAPSHOTS_TOKEN={token} {program} top
Ctrl-C ends it. Nothing of it is kept.
"""


async def show(port: int) -> None:
    stopped = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopped.set)
    say("starting a front end and Redis ...")
    async with staged(**{PORT: str(port)}) as stage:
        scene = Scene(stage)
        say("starting the nodes, and letting things go wrong: this takes a while ...")
        playing = asyncio.ensure_future(scene.play())
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await playing
            program = f"{sys.prefix}/bin/vps-snapshots"
            servers = sum(len(node.servers) for node in stage.nodes.values())
            say(
                _MANUAL.format(
                    url=stage.url, token=scene.secret, program=program, nodes=len(stage.nodes), servers=servers
                )
            )
            await stopping
        say("stopping ...")
        playing.cancel()


def main() -> int:
    try:
        port = chosen_port()
        ensure_port_free(port)
        asyncio.run(show(port))
    except (OptionRefused, ServiceFailed) as error:
        say(f"make scene: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
