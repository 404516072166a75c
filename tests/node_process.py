"""A worker as a process of its own, to be killed: `python -m tests.node_process SOCKET [SECONDS]`.

Prints `began <id>` when a job begins. A job takes so many seconds; without a number it never ends.
"""

import asyncio
import sys

import uvloop

from worker.jobs.connection import RedisSettings, connect
from worker.node_worker import FALLBACK_SECONDS, NodeWorker


async def serve(socket: str, seconds: float) -> None:
    async def run(job_id: str) -> None:
        sys.stdout.write(f"began {job_id}\n")
        sys.stdout.flush()
        await asyncio.sleep(seconds)

    settings = RedisSettings(url=f"unix://{socket}")
    waiting = connect(settings, command_seconds=2 * FALLBACK_SECONDS)
    worker = NodeWorker(connect(settings), waiting, node="n1", run=run, max_jobs=1)
    worker.resume()
    await worker.work()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 1e9))
