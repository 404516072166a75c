"""The worker program: its commands, and the only place that wires its parts together."""

from worker.program import lean  # noqa: F401, I001 - before all others

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer

from drivers.base import DriverError, Hypervisor, HypervisorUnavailable, Surveyed
from worker.disk_load import DiskLoad
from worker.gateway_client import GatewayClient
from worker.housekeeping import ROUND_SECONDS, Housekeeping
from worker.inventory import REPORT_SECONDS, Inventory
from worker.job_log import JobLog
from worker.journal import Journal, JournalFailed, NewerJournal
from worker.journal import drop_kept as drop_kept_tag
from worker.lease import HypervisorLock, Lease, NodeLock, NodeTaken, boot_id, machine_id, who_am_i
from worker.metrics import Metrics
from worker.node_worker import NodeWorker
from worker.program import alive, logs
from worker.program.alive import Turns, prove_alive
from worker.program.background import in_background
from worker.program.command_line import program
from worker.program.configuration import ConfigurationError, help_text, load
from worker.program.exposition import exposed
from worker.program.span_export import exporting
from worker.publisher import Publisher
from worker.reconcile import Reconciler
from worker.runner import LAST_WORDS_SECONDS, Runner
from worker.settings import Driver, WorkerSettings
from worker.store.errors import StoreUnavailable
from worker.store.model import JobId
from worker.store.nodes.port import NodePort
from worker.store.model import NUMBER_MAX
from worker.survey import as_json as survey_as_json
from worker.survey import as_text as survey_as_text
from worker.traces import of_calls

log = structlog.stdlib.get_logger()
app = program(
    add_completion=False,
    help="The worker of one hypervisor node.\n\nSettings come from the environment and from a TOML file (--config of a"
    " command, or VPS_SNAPSHOTS_CONFIG); see run --help.",
)
Config = Annotated[
    Path | None, typer.Option(help="TOML file with the settings; environment variables take precedence.")
]


@app.command(epilog=help_text(WorkerSettings))
def run(config: Config = None) -> None:
    """Run the snapshot jobs of this node's servers until SIGTERM or SIGINT."""
    settings = _settings(config)
    job_log, metrics = JobLog(), Metrics()
    logs.configure(also=(job_log,), count=(metrics.log_events,))
    try:
        with (
            # outside the event loop, because it may wait for the children of a dead worker
            _locked(settings.state_dir),
            exporting(settings.tracing, service="vps-snapshots-worker", instance=settings.node),
        ):
            asyncio.run(_serve(settings, job_log, metrics))  # not uvloop, which takes 2 MiB and saves a node no time
    except (NodeTaken, NewerJournal, JournalFailed, DriverError, ConfigurationError) as error:
        _refuse(str(error))


@app.command()
def adopt(
    domain: Annotated[str, typer.Argument(help="The domain's name in libvirt.")],
    server_id: Annotated[int, typer.Option(min=1, max=NUMBER_MAX, help="The server's ID in the public API.")],
    account: Annotated[int, typer.Option(min=1, max=NUMBER_MAX, help="The account that owns the server.")],
    config: Config = None,
) -> None:
    """Make a libvirt domain of this node a server of the API.

    The account applies only to a server that the service does not know yet. To change it later, use `vps-snapshots
    server give`.
    """
    settings = _settings(config)
    try:
        asyncio.run(_adopt(settings, domain, server_id, account))
    except DriverError as error:
        _refuse(str(error))
    typer.echo(
        f"domain {domain} is server {server_id} of account {account}\n"
        "If the service already knows the server, its account does not change and is written back to the domain. To"
        " change it, use `vps-snapshots server give`."
    )


@app.command()
def rebuild(config: Config = None) -> None:
    """Make this node's running worker publish its servers' snapshots and jobs again.

    Use it after Redis was restored from an old backup. If Redis has lost all its data, the worker does this
    automatically.
    """
    settings = _settings(config)
    try:
        servers = asyncio.run(_rebuild(settings))
    except StoreUnavailable as error:
        _refuse(f"{error.detail} ({error.__cause__})")
    typer.echo(
        f"{servers} server{'' if servers == 1 else 's'} will be published again with the worker's next report, within"
        f" {REPORT_SECONDS:.0f} s"
    )


@app.command()
def list_in_virsh(
    server_id: Annotated[int, typer.Argument(min=1, max=NUMBER_MAX, help="The server's ID in the public API.")],
    config: Config = None,
) -> None:
    """Add a server's snapshots to libvirt's own list, for `virsh snapshot-list`.

    The worker removes them at its next reconciliation (every 5 minutes). While they are listed, libvirt refuses to
    migrate the server.
    """
    settings = _settings(config)
    try:
        tags = asyncio.run(_list_in_virsh(settings, server_id))
    except DriverError as error:
        _refuse(str(error))
    typer.echo("\n".join(tags) if tags else f"server {server_id} has no complete snapshot")


@app.command()
def drop_kept(
    tag: Annotated[str, typer.Argument(help="The snapshot's tag on the disks: vps-safety-JOB.")], config: Config = None
) -> None:
    """Delete the safety snapshot that a stranded job left, once you no longer need it. The worker deletes it."""
    journal = _settings(config).state_dir / "journal.sqlite"
    try:
        server_id = drop_kept_tag(journal, tag)
    except (JournalFailed, NewerJournal) as error:
        _refuse(str(error))
    if server_id is None:
        _refuse(f"{journal} has no tag {tag} that is kept for an operator")
    typer.echo(
        f"if the worker is running, it will delete {tag} from the disks of server {server_id} in {ROUND_SECONDS:.0f} s"
    )


@app.command()
def survey(
    folder: Annotated[
        Path | None, typer.Argument(help="Survey the domain XML (*.xml) and images in this folder instead of libvirt.")
    ] = None,
    libvirt: Annotated[str, typer.Option(help="URI of the libvirt to survey.")] = "qemu:///system",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a snapshot of each server would hold and leave out, or why it would be refused.

    Changes nothing, and needs neither settings nor another part of the service.
    """
    if folder is not None and not folder.is_dir():
        _refuse(f"{folder} is not a folder")
    try:
        surveyed = asyncio.run(_survey(folder, libvirt))
    except (DriverError, OSError) as error:
        _refuse(str(error))
    if folder is not None and not surveyed:
        typer.echo(f"vps-snapshots-worker: {folder} has no domain XML (*.xml) and no disk image", err=True)
    typer.echo(survey_as_json(surveyed) if as_json else survey_as_text(surveyed))


def _settings(config: Path | None) -> WorkerSettings:
    try:
        return load(WorkerSettings, config)
    except ConfigurationError as error:
        _refuse(str(error))


def _refuse(why: str) -> NoReturn:
    typer.echo(f"vps-snapshots-worker: {why}", err=True)
    sys.exit(2)


async def _open_hypervisor(settings: WorkerSettings) -> Hypervisor:
    if settings.driver is Driver.FAKE:
        from drivers.fake import simulated_node  # noqa: PLC0415 - never loaded on a real node

        return simulated_node(settings.state_dir / "fake.json", servers=settings.fake_servers)
    try:
        from drivers.kvm import KvmHypervisor  # noqa: PLC0415 - the fake must run without libvirt
    except ModuleNotFoundError as error:
        _refuse(f"{error}. Was this machine installed as a front end? A node needs libvirt-python.")
    try:
        return await KvmHypervisor.open(settings.libvirt_uri)
    except HypervisorUnavailable as error:
        raise HypervisorUnavailable(f"{settings.libvirt_uri}: {error} ({error.__cause__})") from error


async def _survey(folder: Path | None, uri: str) -> list[Surveyed]:
    try:
        from drivers.kvm import survey_folder, survey_libvirt  # noqa: PLC0415 - as above
    except ModuleNotFoundError as error:
        _refuse(f"{error}. Was this machine installed as a front end? A node needs libvirt-python.")
    if folder is not None:
        return await survey_folder(folder)
    try:
        return await survey_libvirt(uri)
    except HypervisorUnavailable as error:
        raise HypervisorUnavailable(
            f"{uri}: {error} ({error.__cause__}). Start its daemon (libvirtd or virtqemud), name another libvirt with"
            " --libvirt URI, or survey a folder of definitions and images: vps-snapshots-worker survey FOLDER"
        ) from error


async def _adopt(settings: WorkerSettings, domain: str, server_id: int, account: int) -> None:
    hypervisor = await _open_hypervisor(settings)
    try:
        await hypervisor.adopt(domain, server_id=server_id, account_id=account)
    finally:
        await hypervisor.close()


async def _list_in_virsh(settings: WorkerSettings, server_id: int) -> tuple[str, ...]:
    hypervisor = await _open_hypervisor(settings)
    try:
        return await hypervisor.list_for_people(server_id)
    finally:
        await hypervisor.close()


async def _rebuild(settings: WorkerSettings) -> int:
    gateway = _gateway(settings)
    async with in_background(gateway.keep_connected()):
        return await gateway.republish()


def _gateway(settings: WorkerSettings, metrics: Metrics | None = None) -> GatewayClient:
    return GatewayClient(
        settings.gateway,
        node=settings.node,
        machine=machine_id(settings.state_dir),
        who=who_am_i(),
        observer=metrics.gateway if metrics else None,
    )


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Hold the node's lock file during the block. Raises NodeTaken, or ConfigurationError if the folder is unusable."""
    lock = NodeLock(state_dir)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise ConfigurationError(f"state_dir {state_dir}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def _fence(settings: WorkerSettings) -> HypervisorLock | None:
    """Take the lock on the hypervisor; None if it is simulated or runs on another machine. Raises NodeTaken."""
    if settings.driver is Driver.FAKE:
        return None
    from drivers.kvm import fence_of  # noqa: PLC0415 - the fake must run without libvirt

    folder = fence_of(settings.libvirt_uri)
    if folder is None:
        return None
    lock = HypervisorLock(folder)
    try:
        lock.take()
    except OSError as error:
        raise ConfigurationError(f"libvirt_uri {settings.libvirt_uri}: {folder}: {error.strerror}") from error
    return lock


@dataclass(frozen=True, kw_only=True)
class _Means:
    """The objects from which the parts of the worker are built."""

    settings: WorkerSettings
    hypervisor: Hypervisor
    journal: Journal
    job_log: JobLog
    metrics: Metrics
    store: NodePort


@dataclass(frozen=True, kw_only=True)
class _Parts:
    runner: Runner
    publisher: Publisher
    queue: NodeWorker
    reconciler: Reconciler
    inventory: Inventory
    load: DiskLoad
    lease: Lease
    housekeeping: Housekeeping
    turns: Turns


async def _serve(settings: WorkerSettings, job_log: JobLog, metrics: Metrics) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with _opened(settings, job_log, metrics) as means:
        parts = _wired(means)
        if not stop.is_set():  # asked to stop during the start: the next process finishes the jobs
            await _live(parts, settings, stop)


@asynccontextmanager
async def _opened(settings: WorkerSettings, job_log: JobLog, metrics: Metrics) -> AsyncIterator[_Means]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            exposed(metrics.registry, host=settings.metrics_host, port=settings.metrics_port)
        )
        journal = Journal(settings.state_dir / "journal.sqlite")
        stack.callback(journal.close)
        hypervisor = await _open_hypervisor(settings)
        stack.push_async_callback(hypervisor.close)
        if fence := await asyncio.to_thread(_fence, settings):  # may wait for the children of a dead worker
            stack.callback(fence.release)
        gateway = _gateway(settings, metrics)
        await stack.enter_async_context(in_background(gateway.keep_connected()))
        yield _Means(
            settings=settings,
            hypervisor=of_calls(hypervisor) if settings.tracing.endpoint else hypervisor,
            journal=journal,
            job_log=job_log,
            metrics=metrics,
            store=gateway,
        )


async def _live(parts: _Parts, settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Work until asked to stop or a part fails, then wait for the running jobs. Raises the exception of the failed
    part."""
    owed = parts.runner.resume()  # comes first: started jobs must finish even if the store is unreachable
    log.info("worker.started", node=settings.node, driver=settings.driver, owed_jobs=len(owed))
    alive.tell(alive.READY)
    taken = asyncio.Event()
    until_the_end = (parts.publisher.publish_steps(), prove_alive(parts.turns), _keep_lease(parts.lease, taken))
    try:
        async with _beside(*until_the_end), _beside(_work_with_others(parts, taken)):
            try:
                await stop.wait()
            finally:  # also if a part has failed
                alive.tell(alive.STOPPING)
                log.info("worker.stopping", drain_seconds=settings.drain_seconds)
                parts.queue.pause()
                await parts.runner.drain(settings.drain_seconds)
                await parts.queue.stop(LAST_WORDS_SECONDS)
                await parts.runner.thaw_interrupted()
    finally:
        await parts.lease.give_back()  # after the heartbeats have stopped: another one would take the lease again
    log.info("worker.stopped")


@asynccontextmanager
async def _beside(*parts: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run the parts while the block runs, and cancel them at its end. If a part fails, the block and the other parts
    are cancelled, and its exception is raised here."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as failed:
        first: BaseException = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from failed


def _wired(means: _Means) -> _Parts:
    settings, journal, metrics, store = means.settings, means.journal, means.metrics, means.store
    turns = Turns()
    publisher = Publisher(
        store,
        publish_again=lambda server_id: reconciler.server(server_id),  # noqa: PLW0108 - made below
        log_of=means.job_log.taken,
    )
    runner = Runner(
        journal=journal,
        hypervisor=means.hypervisor,
        store=store,
        publisher=publisher,
        policy=settings.policy,
        limits=settings.limits,
        metrics=metrics,
        may_continue=lambda: lease.still_ours(),  # noqa: PLW0108 - made below
        absences=lambda: lease.absences,
        on_work_done=lambda job_id: queue.free_slot(job_id),  # noqa: PLW0108 - made below
    )
    load = DiskLoad(most=settings.max_jobs, busy_percent=settings.disk_busy_percent, pressure=settings.io_pressure_file)
    queue = NodeWorker(
        take=store.take,
        run=lambda job_id, begun: runner.run(JobId(job_id), begun),
        max_jobs=settings.max_jobs,
        turned=turns.counted("jobs"),
        allowed=lambda: load.allowed,
    )
    reconciler = Reconciler(
        hypervisor=means.hypervisor,
        store=store,
        journal=journal,
        runner=runner,
        safety_kept_seconds=settings.safety_kept_seconds,
        look_seconds=settings.step_seconds,
        metrics=metrics,
    )
    inventory = Inventory(
        means.hypervisor,
        store,
        publish=reconciler.server,
        reconcile=reconciler.soon,
        metrics=metrics,
        slots=lambda: load.allowed,
        slots_max=settings.max_jobs,
        boot=boot_id(),
    )
    load.on_change(inventory.tell_facts)

    async def lease_gained() -> None:
        await inventory.report()  # before taking jobs, because a job may be queued for a server that the store has lost
        queue.resume()

    lease = Lease(store, gained=lease_gained, lost=queue.pause, turned=turns.counted("heartbeats"))
    metrics.follow(
        running=lambda: runner.working,
        allowed=lambda: load.allowed,
        owed=lambda: runner.owed,
        lease_held=lambda: lease.held,
        journal_bytes=journal.size_bytes,
    )
    return _Parts(
        runner=runner,
        publisher=publisher,
        queue=queue,
        reconciler=reconciler,
        inventory=inventory,
        load=load,
        lease=lease,
        housekeeping=Housekeeping(store=store, journal=journal, runner=runner),
        turns=turns,
    )


async def _keep_lease(lease: Lease, taken: asyncio.Event) -> None:
    await lease.take_at_start()
    taken.set()
    await lease.keep()


async def _work_with_others(parts: _Parts, taken: asyncio.Event) -> None:
    """Once the lease is taken, run the parts that only its holder may run."""
    await taken.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(parts.queue.work())
        group.create_task(parts.inventory.keep_reporting())
        group.create_task(parts.inventory.keep_publishing())
        group.create_task(parts.housekeeping.keep_house())
        group.create_task(parts.load.keep_looking())
        group.create_task(parts.reconciler.keep_reconciling())


def main() -> None:
    app()


if __name__ == "__main__":
    main()
