"""Finds disks that a server shares with other domains of its node, without blocking on hung storage."""

import asyncio
from collections.abc import Iterable, Mapping

from drivers.base import HypervisorUnavailable, SkippedDisk, UnsupportedServer
from drivers.kvm import domain, sharing
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import FileDisk
from drivers.kvm.places import Places

LOOK_SECONDS = 5.0  # limit for reading the files of every domain; hundreds of domains take 0.1 s


class Neighbors:
    """The files that all domains of one libvirt use. `look_seconds`: time limit for reading them."""

    def __init__(self, connection: Connection, places: Places, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._libvirt = connection
        self._places = places
        self._look_seconds = look_seconds
        self._reading: asyncio.Future[sharing.Uses] | None = None

    async def refuse_shared(self, server_id: int, disks: Iterable[FileDisk]) -> None:
        """Raises UnsupportedServer if another domain shares one of the disks.

        If the storage of another server hangs, nothing is refused, because that must not block this server's jobs.
        """
        uuid = await self._libvirt.on(server_id, lambda found: found.UUIDString())
        every = await self._uses()
        if every is None:
            return
        for shared in await asyncio.to_thread(lambda: [*sharing.shared(disks, uuid, every)]):
            raise UnsupportedServer(sharing.refusal(shared))

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        """The shared disks of all adopted domains, by server ID. Raises HypervisorUnavailable if some storage hangs."""
        every = await self._uses()
        if every is None:
            raise HypervisorUnavailable("some storage of the node is not responding")
        adopted = await self._libvirt.adopted(
            lambda one: (one, one.domain.UUIDString(), domain.configured_hardware(one.domain, self._places).disks)
        )
        found = await asyncio.to_thread(
            lambda: {one.mark.server_id: tuple(sharing.shared(disks, uuid, every)) for one, uuid, disks in adopted}
        )
        return {server_id: shared for server_id, shared in found.items() if shared}

    async def _uses(self) -> sharing.Uses | None:
        """The files of every domain; None if some storage does not answer in time.

        Callers share one read: each read that hangs blocks a thread.
        """
        # it ended after its callers gave up, so it is out of date
        if self._reading is not None and self._reading.done():
            self._reading = None
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._libvirt.call(sharing.uses))
            self._reading.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        reading = self._reading
        await asyncio.wait({reading}, timeout=self._look_seconds)
        if not reading.done():
            return None
        if self._reading is reading:
            self._reading = None
        return reading.result()
