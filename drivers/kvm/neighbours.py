"""Finds the disks that a server has in common with other domains of its node, whatever their storage does."""

import asyncio
from collections.abc import Iterable, Mapping

from drivers.base import HypervisorUnavailable, SkippedDisk, UnsupportedServer
from drivers.kvm import domain, sharing
from drivers.kvm.connection import Connection
from drivers.kvm.domain_xml import FileDisk
from drivers.kvm.places import Places

LOOK_SECONDS = 5.0  # for a look at the files of every domain; hundreds take a tenth of a second


class Neighbours:
    """The other domains of one libvirt, by the files that they use."""

    def __init__(self, connection: Connection, places: Places, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._libvirt = connection
        self._places = places
        self._look_seconds = look_seconds
        self._looking: asyncio.Future[sharing.Uses] | None = None

    async def refuse_shared(self, server_id: int, disks: Iterable[FileDisk]) -> None:
        """Raises UnsupportedServer. Storage of other servers that does not answer keeps no job of this one waiting."""
        uuid = await self._libvirt.on(server_id, lambda found: found.UUIDString())
        every = await self._uses()
        if every is None:
            return
        for shared in await asyncio.to_thread(lambda: [*sharing.shared(disks, uuid, every)]):
            raise UnsupportedServer(sharing.refusal(shared))

    async def shared_disks(self) -> Mapping[int, tuple[SkippedDisk, ...]]:
        """Of all adopted domains, by server id. Raises HypervisorUnavailable where some storage does not answer."""
        every = await self._uses()
        if every is None:
            raise HypervisorUnavailable("some storage of the node does not answer")
        adopted = await self._libvirt.adopted(
            lambda found: (found.UUIDString(), domain.configured_hardware(found, self._places).disks)
        )
        found = await asyncio.to_thread(
            lambda: {mark.server_id: tuple(sharing.shared(disks, uuid, every)) for mark, uuid, disks in adopted}
        )
        return {server_id: shared for server_id, shared in found.items() if shared}

    async def _uses(self) -> sharing.Uses | None:
        """None: some storage did not answer in time. One look at a time: each that hangs keeps a thread."""
        if self._looking is not None and self._looking.done():  # it ended when nobody waited any more: it is old
            self._looking = None
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._libvirt.call(sharing.uses))
            self._looking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        looking = self._looking
        await asyncio.wait({looking}, timeout=self._look_seconds)
        if not looking.done():
            return None
        if self._looking is looking:
            self._looking = None
        return looking.result()
