"""Controls the guest over its serial console; the protocol is described at the top of mkguest.sh."""

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_READY = re.compile(rb"^READY((?: \w+=\d+:\S*)*)\r?\n", re.MULTILINE)
_POLL_SECONDS = 0.05
_RESEND_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Ready:
    """The guest's message after it has booted."""

    boots: Mapping[str, int]  # number of boots, by disk target
    markers: Mapping[str, str]  # marker, by disk target; "": none yet
    end: int  # offset of the message's end in the log: `ready(after=end)` waits for the next boot


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """How long the guest could not write, measured inside the guest, which writes every 10 ms."""

    count: int
    p99_ms: int
    longest_ms: int


class Console:
    """Reads the guest's output from the log, to which libvirt appends at each start, and writes to the socket, which is
    new at each start. Needs no connection to libvirt."""

    def __init__(self, *, socket: Path, log: Path) -> None:
        self.socket = socket
        self.log = log

    def end(self) -> int:
        """The current length of the log, to be passed as `after`."""
        return self.log.stat().st_size if self.log.exists() else 0

    async def ready(self, *, after: int, timeout_seconds: float = 60.0) -> Ready:
        """Wait for a boot after that offset in the log (0: any boot), and return the last. Raises TimeoutError."""
        found = await self._wait_for(_READY, after=after, timeout_seconds=timeout_seconds)
        disks = [word.split("=", 1) for word in found[1].decode(errors="replace").split()]
        values = {target: value.split(":", 1) for target, value in disks}
        return Ready(
            boots={target: int(boots) for target, (boots, _) in values.items()},
            markers={target: marker for target, (_, marker) in values.items()},
            end=after + found.end(),
        )

    async def powered_off(self, *, after: int, timeout_seconds: float = 60.0) -> int:
        """Wait until the guest reports that it has unmounted its disks after a press of the power button.

        Returns the offset of the report's end in the log. QEMU exits a moment later. Raises TimeoutError.
        """
        answer = re.compile(rb"^POWEROFF clean\r?\n", re.MULTILINE)
        return after + (await self._wait_for(answer, after=after, timeout_seconds=timeout_seconds)).end()

    async def write(self, marker: str, *, synced: bool = True, timeout_seconds: float = 30.0) -> None:
        """Make the guest write a marker without spaces to all its disks; if not `synced`, only to its page cache.
        Raises TimeoutError."""
        if not re.fullmatch(r"[\x21-\x7e]{1,200}", marker):
            raise ValueError(f"not a marker: {marker!r}")
        line = f"{'write' if synced else 'dirty'} {marker}"
        answer = re.compile(rf"^OK {re.escape(line)}\r?\n".encode(), re.MULTILINE)
        after = self.end()
        async with asyncio.timeout(timeout_seconds):
            while True:
                with contextlib.suppress(OSError, TimeoutError):  # the guest is booting and ignores its input
                    await self._send(line, answer, after=after)
                    return
                await asyncio.sleep(_POLL_SECONDS)

    async def tick(self, *, timeout_seconds: float = 30.0) -> None:
        """Make the guest write the time to its first disk every 10 ms from now on. Raises TimeoutError."""
        await self._answer("tick x", rb"", timeout_seconds=timeout_seconds)

    async def gaps(self, *, timeout_seconds: float = 30.0) -> Gaps:
        """The gaps between two writes of `tick` so far. Raises TimeoutError."""
        found = await self._answer("gaps x", rb" (\d+) (\d+) (\d+)", timeout_seconds=timeout_seconds)
        return Gaps(count=int(found[1]), p99_ms=int(found[2]), longest_ms=int(found[3]))

    async def _answer(self, line: str, values: bytes, *, timeout_seconds: float) -> re.Match[bytes]:
        answer = re.compile(rb"^OK " + line.encode() + values + rb"\r?\n", re.MULTILINE)
        after = self.end()
        async with asyncio.timeout(timeout_seconds):
            await self._send(line, answer, after=after)
            return await self._wait_for(answer, after=after, timeout_seconds=timeout_seconds)

    async def _send(self, line: str, answer: re.Pattern[bytes], *, after: int) -> None:
        _, writer = await asyncio.open_unix_connection(self.socket)
        try:
            writer.write(f"{line}\n".encode())
            await writer.drain()
            await self._wait_for(answer, after=after, timeout_seconds=_RESEND_SECONDS)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _wait_for(self, pattern: re.Pattern[bytes], *, after: int, timeout_seconds: float) -> re.Match[bytes]:
        async with asyncio.timeout(timeout_seconds):
            while True:
                found = list(pattern.finditer(self._read(after)))
                if found:
                    return found[-1]
                await asyncio.sleep(_POLL_SECONDS)

    def _read(self, after: int) -> bytes:
        try:
            with self.log.open("rb") as log:
                log.seek(after)
                return log.read()
        except FileNotFoundError:
            return b""
