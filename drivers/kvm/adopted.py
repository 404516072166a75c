"""The domains of a node that are adopted as servers. The calls block, and raise libvirt's own errors."""

import time
from dataclasses import dataclass, field
from typing import Any

import libvirt

from drivers.base import MARK_NAMESPACE, DomainNotFound, InvalidState, Power
from drivers.kvm import readiness, records
from drivers.kvm.in_use import is_of_another_node
from drivers.kvm.libvirt_errors import ignoring
from drivers.kvm.marks import PREFIX, ServerMark


@dataclass(frozen=True, kw_only=True)
class Adopted:
    domain: Any
    mark: ServerMark
    power: Power


@dataclass(frozen=True, kw_only=True)
class _Marks:
    """The marks of domains by UUID, none read before `since` (of the monotonic clock); None: not adopted."""

    since: float = field(default_factory=time.monotonic)
    by_uuid: dict[str, ServerMark | None] = field(default_factory=dict)


class AdoptedDomains:
    """Lists the adopted domains of one libvirt. Remembers their marks, because libvirt has no call that reads those of
    all domains at once. Several threads may use it."""

    def __init__(self) -> None:
        self._marks = _Marks()

    def forget_marks(self) -> None:
        """A mark may have changed, or a domain was started, stopped, defined or undefined."""
        self._marks = _Marks()  # a list that is being read keeps its own, which nobody else will use

    def read(self, handle: Any, *, marks_seconds: float = 0) -> list[Adopted]:
        """All adopted domains, also if several have the same server ID.

        `marks_seconds`: the greatest age of a remembered mark; 0: read all of them. Everything else is read now.
        """
        if time.monotonic() - self._marks.since >= marks_seconds:
            self.forget_marks()
        marks = self._marks.by_uuid
        adopted = []
        # one call for the states of all; like `state()`, it does not wait for another call on a domain
        for domain, stats in handle.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0):
            state, uuid = stats["state.state"], domain.UUIDString()
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN):  # undefined meanwhile
                if is_of_another_node(domain, state, stats["state.reason"]):
                    continue
                if uuid not in marks:
                    marks[uuid] = _read(domain)
                if (mark := marks[uuid]) is not None:
                    # libvirt read the domain's ID, which only an active one has, together with its state
                    power = Power.OFF if domain.ID() == -1 else readiness.power_while_active(state)
                    adopted.append(Adopted(domain=domain, mark=mark, power=power))
        return adopted

    def adopt(self, handle: Any, name: str, mark: ServerMark) -> None:
        """Mark the domain with this name as a server. Raises DomainNotFound or InvalidState."""
        try:
            domain = handle.lookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                raise DomainNotFound(f"libvirt has no domain {name}") from error
            raise
        for other in self.read(handle):
            if other.mark.server_id == mark.server_id and other.domain.UUIDString() != domain.UUIDString():
                raise InvalidState(f"domain {other.domain.name()} is already server {mark.server_id}")
        if not domain.isPersistent():
            raise InvalidState(f"domain {name} is transient: it disappears when it is shut off")
        where = libvirt.VIR_DOMAIN_AFFECT_CONFIG | (libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0)
        before = mark_of(domain)
        if before is not None and before.server_id != mark.server_id:
            # a copy of that server's domain, whose snapshot records do not belong to this server
            with ignoring(libvirt.VIR_ERR_NO_DOMAIN_METADATA):
                domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, records.PREFIX, records.NAMESPACE, where)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, mark.xml, PREFIX, MARK_NAMESPACE, where)
        self.forget_marks()  # libvirt's event comes later


def mark_of(domain: Any) -> ServerMark | None:
    """None if the domain is not adopted, has vanished or belongs to another node."""
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN):
        return None if is_of_another_node(domain, *domain.state()) else _read(domain)
    return None


def _read(domain: Any) -> ServerMark | None:
    with ignoring(libvirt.VIR_ERR_NO_DOMAIN_METADATA):
        return ServerMark.read(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_NAMESPACE, 0))
    return None
