"""`make demo`: shows, with a real guest, that a restore brings back its data. Uses a temporary folder."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deploy.demo.client import Answer
from deploy.demo.guest import GuestFailed
from deploy.demo.service import SERVER_ID, Service, ServiceFailed, free_port
from deploy.demo.state import State
from deploy.lab.console import Ready
from worker.settings import Driver

JOB_SECONDS = 180.0  # limit for one job; on an idle machine each takes 2 s to 6 s
FREED_SECONDS = 30.0  # limit for the node to free the space of a deleted snapshot


class Demo:
    """The script of the demo, and the checks that failed."""

    def __init__(self, service: Service) -> None:
        self.failed: list[str] = []
        self._service = service
        self._guest = service.guest
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {text}", flush=True)

    def check(self, what: str, passed: object) -> None:
        self.say(f"   {'✓' if passed else '✗'} {what}")
        if not passed:
            self.failed.append(what)

    async def run(self) -> None:
        self.say("starting Redis, a QEMU guest as server 12345, the worker and the front end")
        await self._service.start()
        self._check_guest(self._service.booted, boots=1, marker="")
        snapshot_id, tag = await self._create()
        await self._restore(snapshot_id)
        await self._delete(snapshot_id, tag)

    async def _create(self) -> tuple[int, str]:
        self.say("the guest writes A to both of its disks")
        await self._guest.console.write("A")
        self.say("POST /api/v1/snapshots/: shut down, snapshot both disks, start again")
        before = self._guest.console.end()
        body = {"server_id": SERVER_ID, "name": "before-update", "description": "while the disks contain A"}
        answer = await self._service.client.call("POST", "/api/v1/snapshots/", body)
        self._check_answer(answer, HTTPStatus.CREATED)
        await self._follow(answer.headers["Operation-Location"])
        snapshot = (await self._service.client.call("GET", answer.headers["Location"])).body
        passed = snapshot["status"] == "completed" and snapshot["size_mb"]
        self.check(f"the snapshot is {snapshot['status']} and holds {snapshot['size_mb']} MiB", passed)
        self._check_guest(await self._guest.ready(after=before), boots=2, marker="A")
        tag = f"vps-{snapshot['id']}"
        self.check(f"qemu-img lists {tag} on both disks", all(tag in tags(disk) for disk in self._guest.disks))
        return snapshot["id"], tag

    async def _restore(self, snapshot_id: int) -> None:
        self.say("the guest writes B to both of its disks")
        await self._guest.console.write("B")
        self.say(f"POST /api/v1/snapshots/{snapshot_id}/restore/: power off, revert both disks, start again")
        before = self._guest.console.end()
        answer = await self._service.client.call("POST", f"/api/v1/snapshots/{snapshot_id}/restore/")
        self._check_answer(answer, HTTPStatus.OK)
        await self._follow(answer.headers["Operation-Location"])
        # The boot count is also on the disks: the snapshot was taken after one boot.
        self._check_guest(await self._guest.ready(after=before), boots=2, marker="A")

    async def _delete(self, snapshot_id: int, tag: str) -> None:
        self.say(f"DELETE /api/v1/snapshots/{snapshot_id}/: while the guest runs")
        console_end, allocated_before = self._guest.console.end(), self._allocated()
        answer = await self._service.client.call("DELETE", f"/api/v1/snapshots/{snapshot_id}/")
        self._check_answer(answer, HTTPStatus.NO_CONTENT)
        listed = (await self._service.client.call("GET", f"/api/v1/snapshots/?server_id={SERVER_ID}")).body
        self.check("the list is empty", listed == {"count": 0, "results": []})
        gone = await wait_until(lambda: not any(tag in tags(disk) for disk in self._guest.disks))
        self.check(f"qemu-img lists {tag} on no disk", gone)
        shrunk = await wait_until(lambda: self._allocated() < allocated_before)
        sizes = f"{allocated_before >> 10} KiB before, {self._allocated() >> 10} KiB now"
        self.check(f"the disks' files use less space: {sizes}", shrunk)
        self.check("the guest was not stopped", b"POWEROFF" not in self._guest.console.log.read_bytes()[console_end:])

    def _check_answer(self, answer: Answer, status: HTTPStatus) -> None:
        """Raises ServiceFailed for any other status, because then there is no job to follow."""
        self.check(f"{answer.status} {HTTPStatus(answer.status).phrase}", answer.status == status)
        if answer.status != status:
            raise ServiceFailed(f"expected status {status}, got {answer.status}: {answer.body}")

    async def _follow(self, path: str) -> None:
        job = await self._service.client.follow(path, timeout_seconds=JOB_SECONDS)
        downtime = f"guest down for {job['downtime_seconds'] or 0:.2f} s"
        reason = f": {job['error']['detail']}" if job["error"] else ""
        self.check(f"{job['kind']} job {job['state']}, {downtime}{reason}", job["state"] == "completed")

    def _check_guest(self, found: Ready, *, boots: int, marker: str) -> None:
        both = {target: (found.boots[target], found.markers[target]) for target in found.boots}
        states = " ".join(f"{target}={count}:{text}" for target, (count, text) in both.items())
        self.check(f"the guest's console: READY {states}", both == dict.fromkeys(("vda", "vdb"), (boots, marker)))

    def _allocated(self) -> int:
        """Bytes that the disks' files use on the storage."""
        return sum(disk.stat().st_blocks * 512 for disk in self._guest.disks)

    def check_leftovers(self) -> None:
        self.check(
            "the guest is off and its disks are consistent", all(conditionund(disk) for disk in self._guest.disks)
        )


def tags(disk: Path) -> set[str]:
    """The names of the disk's snapshots. Works while its guest runs."""
    info = _qemu_img("info", "--force-share", "--output=json", "-f", "qcow2", disk)
    return {snapshot["name"] for snapshot in json.loads(info.stdout).get("snapshots", [])}


def conditionund(disk: Path) -> bool:
    """Whether `qemu-img check` finds no error; also False if another program holds the disk."""
    return _qemu_img("check", "-q", "-f", "qcow2", disk).returncode == 0


def _qemu_img(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)


async def wait_until(condition: Callable[[], bool]) -> bool:
    """Wait until the condition is true; False if that takes longer than FREED_SECONDS."""
    try:
        async with asyncio.timeout(FREED_SECONDS):
            while not condition():  # noqa: ASYNC110 - disks send no events
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


async def run(state: State) -> int:
    service = Service(state, port=free_port(), driver=Driver.KVM)
    demo = Demo(service)
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, lambda: this and this.cancel())
    try:
        await demo.run()
    except (ServiceFailed, GuestFailed, TimeoutError) as error:
        demo.check(f"the demo ran to its end ({type(error).__name__}: {error})", passed=False)
    finally:
        demo.say("stopping everything")
        await asyncio.shield(service.stop())
    demo.check_leftovers()
    if demo.failed:
        demo.say(f"FAILED: {len(demo.failed)} checks failed; logs are in {state.folder / 'logs'}")
        return 1
    demo.say("all checks passed")
    return 0


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="vps-snapshots-demo-"))
    state = State.open(folder)
    failed = True
    try:
        failed = bool(asyncio.run(run(state)))
    except asyncio.CancelledError:
        print("stopped")
        failed = True
        shutil.rmtree(folder)
    finally:
        state.close()
    if not failed:
        shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
