"""The command `audit`: keep the audit log, with a Redis account of its own."""

import asyncio
import logging
import signal
from datetime import timedelta

import structlog
import typer

from api.options import Config, settings_of
from api.settings import ApiSettings
from worker.program import alive, logs
from worker.program.alive import Turns
from worker.program.background import in_background
from worker.program.command_line import group
from worker.program.loop import every
from worker.store.access import audit_check
from worker.store.access.audit import AuditKeeper
from worker.store.errors import StoreUnavailable
from worker.store.redis_client import connect

KEEP_SECONDS = 1.0  # an entry appears in the log at most this much later
CHECK_SECONDS = 3600.0

app = group(help="Keep the audit log.")
log = structlog.stdlib.get_logger()


@app.callback()
def _audit() -> None:
    """Without this callback, typer would turn the only command into the program."""


@app.command("keep")
def keep(context: typer.Context, config: Config = None) -> None:
    """Move new entries to the audit log, remove old ones, and check the log every hour, until SIGTERM or SIGINT."""
    settings = settings_of(ApiSettings, context, config)
    logs.configure(level=logging.getLevelNamesMapping()[settings.log_level.upper()])
    asyncio.run(_keep(settings))


async def _keep(settings: ApiSettings) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    redis = connect(settings.redis)
    keeper = AuditKeeper(redis, kept=timedelta(days=settings.audit_days))
    turns = Turns()
    expected: dict[type[Exception], str] = {StoreUnavailable: "audit.store_unavailable"}

    async def check() -> None:
        after: str | None = None
        checked, faults = 0, 0
        while True:
            found = await audit_check.check(redis, after=after)
            checked, faults, after = checked + found.checked, faults + len(found.faults), found.after
            for fault in found.faults:
                log.error("audit.broken", kind=fault.kind, entry=fault.entry, detail=fault.detail)
            if after is None:
                break
        log.info("audit.checked", entries=checked, faults=faults, seq=found.seq, chain=found.chain)

    try:
        turned = turns.counted("audit")
        keeping = every(KEEP_SECONDS, keeper.keep, name="audit", expected=expected, turned=turned)
        checking = every(CHECK_SECONDS, check, name="audit_check", expected=expected)
        async with in_background(alive.prove_alive(turns)), in_background(keeping), in_background(checking):
            alive.tell(alive.READY)
            await stop.wait()
            alive.tell(alive.STOPPING)
    finally:
        await redis.aclose(close_connection_pool=True)
