"""Compares what a front end shows of its cell with the real machines."""

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from tests.acceptance.cell import tags
from tests.chaos import model
from tests.chaos.hosts import Guest, Host
from tests.chaos.told import Told
from worker.store.model import JobState, snapshot_id_of

SILENT = "node silent"  # the badge of facts that may be outdated


@dataclass(frozen=True, kw_only=True)
class Truth:
    """`homes`: the host of each guest. `domains`: the state of each guest, by host. `under_way`: jobs, by host and
    server. `held`: snapshots on the disks, by server."""

    hosts: Mapping[str, Host]
    guests: Mapping[int, Guest]
    homes: Mapping[int, Host]
    domains: Mapping[str, Mapping[str, str]]
    under_way: Mapping[str, Mapping[int, model.UnderWay]]
    held: Mapping[int, frozenset[int]]
    paused: Collection[str]

    def power(self, server: int) -> str:
        return self.domains[self.homes[server].name].get(self.guests[server].name, "none")

    def job_of(self, server: int) -> model.UnderWay | None:
        return self.under_way[self.homes[server].name].get(server)

    def is_off_for_job(self, server: int) -> bool:
        job = self.job_of(server)
        return job is not None and job.was_running and self.power(server) != "on"


async def look(
    hosts: Sequence[Host], guests: Mapping[int, Guest], homes: Mapping[int, Host], *, paused: Collection[str]
) -> Truth:
    """Read the state from the machines, without the service's code. `homes`: hosts of guests that are not running."""
    domains = {host.name: await asyncio.to_thread(host.domains) for host in hosts}
    runs = {
        server: next((host for host in hosts if domains[host.name].get(guest.name) == "on"), homes[server])
        for server, guest in guests.items()
    }
    return Truth(
        hosts={host.name: host for host in hosts},
        guests=guests,
        homes=runs,
        domains=domains,
        under_way={host.name: model.under_way(host.journal) for host in hosts},
        held={server: await asyncio.to_thread(_held, guest) for server, guest in guests.items()},
        paused=paused,
    )


def _held(guest: Guest) -> frozenset[int]:
    return frozenset(filter(None, map(snapshot_id_of, tags(guest.disk))))


def differences(truth: Truth, told: Told) -> list[str]:
    return [
        *_of_machines(truth),
        *(f"{name}: {found}" for name in truth.hosts for found in _of_node(truth, told, name)),
        *(f"server {server}: {found}" for server in truth.guests for found in _of_server(truth, told, server)),
        *(f"job {job[:8]}: {found}" for job in told.jobs for found in _of_job(truth, told, job)),
        *(f"overview: {found}" for found in _of_overview(truth, told)),
    ]


def _of_machines(truth: Truth) -> Iterator[str]:
    for guest in truth.guests.values():
        on = [name for name, domains in truth.domains.items() if domains.get(guest.name) == "on"]
        if len(on) > 1:
            yield f"{guest.name} runs on {on}"
        elif not on and truth.job_of(guest.id) is None and truth.homes[guest.id].is_on:
            yield f"{guest.name} is off"


def _of_node(truth: Truth, told: Told, name: str) -> Iterator[str]:
    host, node = truth.hosts[name], told.nodes.get(name)
    if node is None:
        yield "is not listed"
        return
    row, page = told.pages["/ops/nodes/"].rows[f"node-{name}"], told.pages[f"/ops/nodes/{name}/"]
    servers = sum(home is host for home in truth.homes.values())
    yield from _unless("alive", node["alive"], host.is_heard)
    yield from _unless("said to be silent", "No heartbeat since" in page.text, not host.is_heard)
    yield from _unless(
        "state", ("silent" in row["State"], "paused" in row["State"]), (not host.is_heard, name in truth.paused)
    )
    yield from _unless("paused", node["paused"] is not None, name in truth.paused)
    yield from _unless("servers", (node["servers"], row["Servers"]), (servers, str(servers)))
    if host.is_heard:
        running = len(truth.under_way[name])
        yield from _unless("running", (node["running"], row["In progress"]), (running, str(running)))
        yield from _unless("version", node["versions"].get("worker"), host.version)
        yield from _unless("version on the page", row["Versions"].split()[0], host.version)


def _of_server(truth: Truth, told: Told, server: int) -> Iterator[str]:
    home, said = truth.homes[server], told.servers.get(server)
    if said is None:
        yield "is not listed"
        return
    page, row = told.pages[f"/ops/servers/{server}/"], told.pages["/ops/servers/"].rows[f"server-{server}"]
    yield from _unless("node", (said["node"], row["Node"], page.facts["Node"]), (home.name,) * 3)
    yield from _unless("missing", said["missing"], False)
    yield from _unless("reachable", said["reachable"], home.is_heard)
    yield from _unless("said to be of a silent node", "is not responding" in page.text, not home.is_heard)
    yield from _unless("marked as of a silent node", SILENT in row["Status"], not home.is_heard)
    if not home.is_heard:
        return
    power, is_off = truth.power(server), truth.is_off_for_job(server)
    yield from _unless("power", (said["power"], page.facts["Last reported power"]), (power, power))
    yield from _unless("off for a job", said["off_since"] is not None, is_off)
    yield from _unless("off on the page", "off for" in page.text, is_off)
    runs = said["job"] is not None and said["job"]["state"] == JobState.IN_PROGRESS
    yield from _unless("busy", runs, truth.job_of(server) is not None)
    if said["job"] is None:
        yield from _unless("snapshots", told.snapshots[server], truth.held[server])


def _of_job(truth: Truth, told: Told, job_id: str) -> Iterator[str]:
    job, page = told.jobs[job_id], told.pages[f"/ops/jobs/{job_id}/"]
    host, is_running = truth.hosts[job["node"]], job["state"] == JobState.IN_PROGRESS
    yield from _unless("said to be of a silent node", "is not responding" in page.text, not host.is_heard)
    if is_running and host.is_heard:
        yield from _unless("under way", job["server"]["id"] in truth.under_way[host.name], True)
        yield from _unless("off", job["off_since"] is not None, truth.is_off_for_job(job["server"]["id"]))


def _of_overview(truth: Truth, told: Told) -> Iterator[str]:
    page, silent = told.pages["/ops/"], [name for name, host in truth.hosts.items() if not host.is_heard]
    alive = len(truth.hosts) - len(silent)
    counts = {"alive": alive, "silent": len(silent), "paused": len(truth.paused)}
    yield from _unless("nodes", told.overview["nodes"], counts)
    yield from _unless("nodes on the page", f"{alive} of {len(truth.hosts)} nodes alive" in page.text, True)
    if silent or truth.paused:
        yield from _unless("all clear", "All clear." in page.text, False)
    if silent:
        yield from _unless("silent nodes", any(", ".join(each) in page.text for each in permutations(silent)), True)
    runs = sum(job["state"] == JobState.IN_PROGRESS for job in told.jobs.values())
    yield from _unless("in progress", told.overview["in_progress"], runs)
    off = {row for row in page.rows if row.startswith("off-")}
    for server, home in truth.homes.items():
        if home.is_heard:
            yield from _unless(f"server {server} off", f"off-{server}" in off, truth.is_off_for_job(server))
        elif f"off-{server}" in off:
            said = page.rows[f"off-{server}"]["Off for"]
            yield from _unless(f"server {server} off at last report", "last report" in said, True)


def _unless(what: str, said: object, real: object) -> Iterator[str]:
    if said != real:
        yield f"{what}: shown {said}, actual {real}"
