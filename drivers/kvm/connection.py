"""The connection to libvirt: reconnects when it is lost, runs calls in threads, delivers events on the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import Any, TypeVar

import libvirt

from drivers.base import (
    MARK_NAMESPACE,
    DomainNotFound,
    DriverError,
    HypervisorUnavailable,
    InvalidState,
    ServerInUse,
    StartFailed,
)
from drivers.kvm import listing
from drivers.kvm.adopted import Adopted, AdoptedDomains, mark_of
from drivers.kvm.in_use import is_of_another_node
from drivers.kvm.libvirt_errors import UNKNOWN_OUTCOME, ignoring
from drivers.kvm.marks import ServerMark
from drivers.kvm.opening import opened

Answer = TypeVar("Answer")

THREADS = 32  # concurrent calls: a hung one must not block the others
HUNG_SECONDS = 30.0  # how long to wait for a cancelled call; after that its server counts as hung
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3  # the connection is closed after 15 s without a reply from the daemon


def translate(error: libvirt.libvirtError, otherwise: type[DriverError], text: str, *, alive: bool) -> DriverError:
    """Translate libvirt's error to ours. Of its error codes only "no such domain", a lost daemon and a held lock are
    reliable; any other becomes `otherwise(text)`. Its texts are in the language of the daemon's locale.

    `alive`: whether the connection still works after the failed call.
    """
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainNotFound("the server is not on this node")
    # Only a start has other limits that can run out (a device's helper that does not answer). Its lock is told by the
    # English text; in any other language it counts as a daemon that does not respond, and the start is retried.
    may_start = otherwise is StartFailed
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT and (not may_start or "state change lock" in str(error)):
        return ServerInUse("another tool is working on the server")  # the call has timed out and changed nothing
    # On a dead connection, these two mean the same; on a live one they are errors of the daemon or of its kernel (a
    # file that a start needs is missing).
    if code in UNKNOWN_OUTCOME or (code in _LOST_IF_DEAD and not alive):
        return HypervisorUnavailable("the hypervisor is not responding")
    return otherwise(text)


_LOST_IF_DEAD = frozenset({libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_ERR_INTERNAL_ERROR})


@cache
def _start_event_loop() -> None:
    """Run libvirt's event loop, one per process, in a daemon thread."""
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not printed
    libvirt.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_event_loop, name="libvirt events", daemon=True).start()


def _run_event_loop() -> None:
    while True:
        with suppress(libvirt.libvirtError):
            libvirt.virEventRunDefaultImpl()


def _is_alive(handle: Any) -> bool:
    with suppress(libvirt.libvirtError):  # it has been closed
        return handle is not None and bool(handle.isAlive())
    return False


class Connection:
    """A connection to libvirt at one URI. Every method may raise HypervisorUnavailable."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._opening = threading.Lock()
        self._handle: Any = None
        self._callbacks: list[int] = []  # for events of that handle
        self._adopted = AdoptedDomains()
        self._hung: set[int] = set()  # servers with a call that has not returned
        self._uuids: dict[int, str] = {}  # server ID -> UUID of its domain when it was last found
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Callable[[], None]] = []
        self._ended_by_host: set[str] = set()  # UUIDs of domains

    async def open(self) -> None:
        _start_event_loop()
        await self.call(lambda _handle: None)

    async def close(self) -> None:
        await self._in_thread(self._close)
        self._threads.shutdown(wait=False)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call the listener on the event loop whenever a domain was started, stopped, defined or undefined, or its mark
        was changed."""
        self._listeners.append(listener)

    def was_ended_by_host(self, uuid: str) -> bool:
        """Whether QEMU last ended because of a signal or a command, not because the guest shut down. libvirt itself
        remembers both as a shutdown."""
        return uuid in self._ended_by_host

    async def call(
        self,
        work: Callable[[Any], Answer],
        *,
        otherwise: type[DriverError] = HypervisorUnavailable,
        text: str = "the hypervisor refused the request",
        server_id: int | None = None,
    ) -> Answer:
        """Run `work(connection)` in a thread. An unclassified libvirt error becomes `otherwise(text)`.

        `server_id`: the server that the call is about.
        """

        def run() -> Answer:
            handle = None
            try:
                handle = self._open_handle()
                return work(handle)
            except libvirt.libvirtError as error:
                # of the connection that the call used: another call may have opened a new one meanwhile
                raise translate(error, otherwise, text, alive=_is_alive(handle)) from error

        return await self._in_thread(run, server_id)

    async def on(
        self,
        server_id: int,
        work: Callable[[Any], Answer],
        *,
        otherwise: type[DriverError] = HypervisorUnavailable,
        text: str = "the hypervisor refused the request",
        if_hung: bool = False,
    ) -> Answer:
        """Run `work(domain)` in a thread, on the domain adopted as this server. Raises DomainNotFound, or an
        unclassified libvirt error as `otherwise(text)`.

        `if_hung`: even if an earlier call on the server has not returned.
        """
        if server_id in self._hung and not if_hung:
            raise HypervisorUnavailable("the hypervisor has not responded to an earlier call on the server")

        def run(handle: Any) -> Answer:
            return work(self._domain(handle, server_id))

        return await self.call(run, otherwise=otherwise, text=text, server_id=server_id)

    async def adopted(self, read: Callable[[Adopted], Answer], *, marks_seconds: float = 0) -> list[Answer]:
        """The result of `read` for each adopted domain; domains that vanish meanwhile are left out. `marks_seconds`:
        see `AdoptedDomains`."""

        def read_all(handle: Any) -> list[Answer]:
            answers = []
            for adopted in self._adopted.read(handle, marks_seconds=marks_seconds):
                with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
                    answers.append(read(adopted))
            return answers

        return await self.call(read_all)

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        """Raises DomainNotFound or InvalidState."""
        mark = ServerMark(server_id=server_id, account_id=account_id)
        await self.call(lambda handle: self._adopted.adopt(handle, name, mark), text="libvirt refused the mark")

    def recall(self, server_id: int, uuid: str) -> None:
        """Remember the domain in which an earlier process found the server."""
        self._uuids.setdefault(server_id, uuid)

    async def _in_thread(self, run: Callable[[], Answer], server_id: int | None = None) -> Answer:
        running = self._loop.run_in_executor(self._threads, run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # libvirt is still working on the VM, so nothing else may touch it until the call has returned
            given_up = self._loop.time() + HUNG_SECONDS
            while not running.done() and (left := given_up - self._loop.time()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({running}, timeout=left)
            if not running.done() and server_id is not None:
                self._hung.add(server_id)
                running.add_done_callback(lambda _: self._hung.discard(server_id))
            running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # mark it as retrieved
            raise

    def _open_handle(self) -> Any:
        with self._opening:
            if self._handle is None or not self._handle.isAlive():
                self._forget_handle()
                self._handle = opened(self.uri)
                try:
                    self._watch(self._handle)
                except libvirt.libvirtError:
                    self._forget_handle()  # the next call tries again
                    raise
                self._tell()  # events may have been missed while disconnected
            return self._handle

    def _watch(self, handle: Any) -> None:
        with suppress(libvirt.libvirtError):  # the embedded driver has no keepalive
            handle.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
        lifecycle, metadata = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE
        self._callbacks.append(handle.domainEventRegisterAny(None, lifecycle, self._note, None))
        self._callbacks.append(handle.domainEventRegisterAny(None, metadata, self._note_metadata, None))

    def _forget_handle(self) -> Any:
        """Stop using the connection, and return it. Its callbacks would keep it with its descriptors, also if it is
        dead. It is not closed here, because another call may still use it."""
        handle, self._handle = self._handle, None
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            with suppress(libvirt.libvirtError):
                handle.domainEventDeregisterAny(callback)
        return handle

    def _note(self, _handle: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if event == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN:
            by_host = detail == libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST
            (self._ended_by_host.add if by_host else self._ended_by_host.discard)(domain.UUIDString())
        self._tell()

    def _note_metadata(self, _handle: Any, _domain: Any, _kind: int, namespace: str | None, _opaque: Any) -> None:
        if namespace == MARK_NAMESPACE:  # not our records, which jobs change
            self._tell()

    def _tell(self) -> None:
        self._adopted.forget_marks()
        for listener in self._listeners:
            with suppress(RuntimeError):  # the event loop has been closed
                self._loop.call_soon_threadsafe(listener)

    def _close(self) -> None:
        with self._opening:
            handle = self._forget_handle()
        if handle is not None:
            with suppress(libvirt.libvirtError):
                handle.close()

    def _domain(self, handle: Any, server_id: int) -> Any:
        if uuid := self._uuids.get(server_id):
            with suppress(libvirt.libvirtError):
                domain = handle.lookupByUUIDString(uuid)
                mark = mark_of(domain)
                if mark is not None and mark.server_id == server_id:
                    return domain
        # A copied domain has the same mark: an operator must decide which is the customer's.
        marked = [(one.mark.server_id, one.domain.UUIDString()) for one in self._adopted.read(handle)]
        found = [uuid for marked_id, uuid in marked if marked_id == server_id]
        if not found and (domain := _unmarked_meanwhile(handle, self._uuids.get(server_id))) is not None:
            return domain
        if not found:
            raise DomainNotFound("the server is not on this node")
        if len(found) > 1:
            raise InvalidState("several domains of the node are marked as this server")
        self._uuids |= dict(marked)
        return handle.lookupByUUIDString(found[0])


def _unmarked_meanwhile(handle: Any, uuid: str | None) -> Any:
    """The domain with that UUID, if it lost its mark while one of our jobs holds it; otherwise None.

    This happens when a tool redefines the domain from its own definition. The job must still be able to start it.
    """
    try:
        domain = handle.lookupByUUIDString(uuid) if uuid else None
        if domain is None or is_of_another_node(domain, *domain.state()) or not listing.is_held(domain):
            return None
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return domain
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    return None  # marked as another server
