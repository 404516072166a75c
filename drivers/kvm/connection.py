"""The connection to libvirt: opened again when it was lost, its calls in threads, its events on the event loop."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import libvirt

from drivers.base import MARK_NAMESPACE, DomainNotFound, DriverError, HypervisorUnavailable, InvalidState, ServerInUse
from drivers.kvm import listing, records
from drivers.kvm.in_use import has_left, is_incoming
from drivers.kvm.marks import PREFIX, ServerMark
from drivers.kvm.opening import opened

Answer = TypeVar("Answer")
Read = TypeVar("Read")
AlsoRead = TypeVar("AlsoRead")

THREADS = 32  # calls at a time: a hung one must not keep the others waiting
HUNG_SECONDS = 30.0  # a call whose caller has given up may take so long yet; then nobody waits for it any more
KEEPALIVE_SECONDS, KEEPALIVE_COUNT = 5, 3  # a daemon that is silent for 15 s is given up
# The daemon is gone, hangs, or went while it answered: what was asked may have been done. VIR_ERR_SYSTEM_ERROR says so
# where the connection is dead; over a living one it is the kernel's answer (a file that a start needs is missing).
UNKNOWN_OUTCOME = frozenset(
    {
        libvirt.VIR_ERR_RPC,
        libvirt.VIR_ERR_NO_CONNECT,
        libvirt.VIR_ERR_INVALID_CONN,
        libvirt.VIR_ERR_OPERATION_TIMEOUT,
    }
)


def translate(error: libvirt.libvirtError, otherwise: type[DriverError], text: str, *, alive: bool) -> DriverError:
    """libvirt's error as ours. Its codes classify little: only "no such domain" and a lost daemon are reliable.

    `alive`: the connection is, now that the call has failed.
    """
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return DomainNotFound("the hypervisor does not know the server")
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT and "state change lock" in str(error):
        return ServerInUse("another tool is at work on the server")  # the call has waited for it, and done nothing
    lost = code in UNKNOWN_OUTCOME or "client socket is closed" in str(error)
    if lost or (code == libvirt.VIR_ERR_SYSTEM_ERROR and not alive):
        return HypervisorUnavailable("the hypervisor does not answer")
    return otherwise(text)


class _EventLoop:
    """libvirt's own event loop, one for the process, in a thread that ends with it."""

    _started = False
    _lock = threading.Lock()

    @classmethod
    def ensure_running(cls) -> None:
        with cls._lock:
            if not cls._started:
                libvirt.registerErrorHandler(lambda _context, _error: None, None)  # errors are raised, not printed
                libvirt.virEventRegisterDefaultImpl()
                threading.Thread(target=cls._run, name="libvirt events", daemon=True).start()
                cls._started = True

    @staticmethod
    def _run() -> None:
        while True:
            with suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()


class Connection:
    """libvirt at one URI. Every method may raise HypervisorUnavailable."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="libvirt")
        self._opening = threading.Lock()
        self._handle: Any = None
        self._hung: set[int] = set()  # servers on which a call has never returned
        self._uuids: dict[int, str] = {}  # server id -> where it was found last
        self._loop = asyncio.get_running_loop()
        self._listeners: list[Callable[[], None]] = []

    async def open(self) -> None:
        _EventLoop.ensure_running()
        await self.call(lambda _handle: None)

    async def close(self) -> None:
        await self._in_thread(self._close)
        self._threads.shutdown(wait=False)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call the listener on the event loop whenever a domain was started, stopped, defined or undefined."""
        self._listeners.append(listener)

    async def call(
        self,
        work: Callable[[Any], Answer],
        *,
        otherwise: type[DriverError] = HypervisorUnavailable,
        text: str = "the hypervisor refused",
    ) -> Answer:
        """`work(connection)` in a thread; an error of libvirt as `otherwise(text)` if nothing better is known."""

        def run() -> Answer:
            try:
                return work(self._open_handle())
            except libvirt.libvirtError as error:
                raise self._translate(error, otherwise, text) from error

        return await self._in_thread(run)

    async def on(
        self,
        server_id: int,
        work: Callable[[Any], Answer],
        *,
        otherwise: type[DriverError] = HypervisorUnavailable,
        text: str = "the hypervisor refused",
    ) -> Answer:
        """`work(domain)` on the domain that is adopted as this server. Raises DomainNotFound."""
        if server_id in self._hung:
            raise HypervisorUnavailable("the hypervisor has not answered an earlier call on the server")

        def run() -> Answer:
            try:
                return work(self._domain(self._open_handle(), server_id))
            except libvirt.libvirtError as error:
                raise self._translate(error, otherwise, text) from error

        return await self._in_thread(run, server_id)

    async def adopted(self, read: Callable[[Any], tuple[Read, AlsoRead]]) -> list[tuple[ServerMark, Read, AlsoRead]]:
        """The mark of each adopted domain, with what `read` says of it. One that vanishes meanwhile is left out."""

        def read_all(handle: Any) -> list[tuple[ServerMark, Read, AlsoRead]]:
            answers = []
            for mark, domain in _adopted(handle):
                try:
                    answers.append((mark, *read(domain)))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise
            return answers

        return await self.call(read_all)

    async def adopt(self, name: str, *, server_id: int, account_id: int) -> None:
        """Raises DomainNotFound or InvalidState."""
        mark = ServerMark(server_id=server_id, account_id=account_id)
        await self.call(lambda handle: _adopt(handle, name, mark), text="libvirt refused the mark")

    def recall(self, server_id: int, uuid: str) -> None:
        """What an earlier process knew: where it has found the server last."""
        self._uuids.setdefault(server_id, uuid)

    async def _in_thread(self, run: Callable[[], Answer], server_id: int | None = None) -> Answer:
        running = self._loop.run_in_executor(self._threads, run)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # libvirt is still at work on the VM: nobody else may be until it has returned
            given_up = self._loop.time() + HUNG_SECONDS
            while not running.done() and (left := given_up - self._loop.time()) > 0:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({running}, timeout=left)
            if not running.done() and server_id is not None:
                self._hung.add(server_id)
                running.add_done_callback(lambda _: self._hung.discard(server_id))
            running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody else asks for it
            raise

    def _open_handle(self) -> Any:
        with self._opening:
            if self._handle is None or not self._handle.isAlive():
                self._handle = opened(self.uri)
                with suppress(libvirt.libvirtError):  # the embedded driver has no wire to keep alive
                    self._handle.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_COUNT)
                lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
                self._handle.domainEventRegisterAny(None, lifecycle, self._tell, None)
                self._tell()  # what happened while nobody listened is not known
            return self._handle

    def _translate(self, error: libvirt.libvirtError, otherwise: type[DriverError], text: str) -> DriverError:
        with self._opening:
            alive = self._handle is not None and bool(self._handle.isAlive())
        return translate(error, otherwise, text, alive=alive)

    def _tell(self, *_event: Any) -> None:
        for listener in self._listeners:
            with suppress(RuntimeError):  # the event loop has been closed
                self._loop.call_soon_threadsafe(listener)

    def _close(self) -> None:
        with self._opening:
            handle, self._handle = self._handle, None
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
        # A copy of a domain carries its mark too: which of them is the customer's, a person must say.
        marked = [(mark.server_id, domain.UUIDString()) for mark, domain in _adopted(handle)]
        found = [uuid for marked_id, uuid in marked if marked_id == server_id]
        if not found and (domain := _unmarked_meanwhile(handle, self._uuids.get(server_id))) is not None:
            return domain
        if not found:
            raise DomainNotFound("the hypervisor does not know the server")
        if len(found) > 1:
            raise InvalidState("several domains of the node are marked as the server")
        self._uuids |= dict(marked)
        return handle.lookupByUUIDString(found[0])


def _unmarked_meanwhile(handle: Any, uuid: str | None) -> Any:
    """The domain of that UUID, if it has lost its mark and a job of ours holds it; else None.

    A tool that keeps definitions of its own has defined it anew, and what the job has stopped is to be started again.
    """
    try:
        domain = handle.lookupByUUIDString(uuid) if uuid else None
        if domain is None or is_incoming(domain) or has_left(domain) or not listing.is_held(domain):
            return None
        domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return domain
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    return None  # marked as another server


def mark_of(domain: Any) -> ServerMark | None:
    try:
        if is_incoming(domain) or has_left(domain):
            return None
        xml = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_NAMESPACE, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in {libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_DOMAIN}:
            return None
        raise
    return ServerMark.read(xml)


def _adopted(handle: Any) -> list[tuple[ServerMark, Any]]:
    marked = ((mark_of(domain), domain) for domain in handle.listAllDomains(0))
    return [(mark, domain) for mark, domain in marked if mark is not None]


def _adopt(handle: Any, name: str, mark: ServerMark) -> None:
    try:
        domain = handle.lookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            raise DomainNotFound(f"there is no domain {name}") from error
        raise
    for known, other in _adopted(handle):
        if known.server_id == mark.server_id and other.UUIDString() != domain.UUIDString():
            raise InvalidState(f"domain {other.name()} is server {mark.server_id} already")
    if not domain.isPersistent():
        raise InvalidState(f"domain {name} is transient: it would be gone once it is off")
    where = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
    before = mark_of(domain)
    if before is not None and before.server_id != mark.server_id:
        # a copy of that server's domain: what is written down there of its snapshots is not this server's
        _drop_records(domain, where)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark.xml, PREFIX, MARK_NAMESPACE, where)


def _drop_records(domain: Any, where: int) -> None:
    try:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, records.PREFIX, records.NAMESPACE, where)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            raise
