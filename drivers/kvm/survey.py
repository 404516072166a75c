"""Surveys what snapshots of all domains of a libvirt would hold.

Read-only. Uses the checks of `KvmHypervisor.layout`, except those for temporary conditions: a migration, a backup, a
program that holds a disk.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import libvirt

from drivers.base import DriverError, Surveyed, SurveyedDisk
from drivers.kvm import connection, domain, hidden, listing, readiness, sharing
from drivers.kvm.adopted import mark_of
from drivers.kvm.domain_xml import FileDisk, Hardware
from drivers.kvm.judgment import judge
from drivers.kvm.libvirt_xml import read
from drivers.kvm.places import places_of
from drivers.kvm.volumes import paths_by
from drivers.qcow2_image import Image


async def survey_libvirt(uri: str) -> list[Surveyed]:
    """Survey every domain, adopted or not. Raises HypervisorUnavailable."""
    opened = connection.Connection(uri)
    await opened.open()
    try:
        found = await opened.call(lambda handle: [_read(one, uri) for one in handle.listAllDomains(0)])
        uses = await opened.call(sharing.uses)
        return [await _surveyed(*one, uses, opened) for one in sorted(found, key=lambda one: one[0].name)]
    finally:
        await opened.close()


def _read(of: Any, uri: str) -> tuple[Surveyed, str, Hardware | None]:
    """libvirt's report about a domain, its UUID, and its hardware if it is readable."""
    refusals: list[str] = []
    mark = found = None
    noticed: list[str] = []
    try:
        mark = mark_of(of)
        found = domain.configured_hardware(of, places_of(uri))
        noticed += (f"after a job that stops the server, it has {less}" for less in readiness.reduced(of))
        configured = read(of.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        noticed += hidden.notes(configured, places_of(uri), paths_by(of.connect()))
        domain.ready_hardware(of, places_of(uri))
    except DriverError as error:
        refusals.append(str(error))
    except libvirt.libvirtError as error:  # the domain has vanished, or a storage pool does not respond
        refusals.append(f"libvirt reports an error: {error}")
    server_id = mark.server_id if mark else None
    survey = Surveyed(name=of.name(), server_id=server_id, refused=tuple(refusals), noticed=tuple(noticed))
    return survey, of.UUIDString(), found


async def _surveyed(
    survey: Surveyed, uuid: str, hardware: Hardware | None, uses: sharing.Uses, of: connection.Connection
) -> Surveyed:
    if hardware is None:
        return survey
    disks = hardware.disks
    judged = await judge(hardware)
    shared = await asyncio.to_thread(lambda: [*sharing.shared(disks, uuid, uses)])
    refusals = (*survey.refused, *map(str, judged.refusals), *map(sharing.refusal, shared))
    if not refusals:
        refusals = await of.call(lambda handle: _stopping_refused(handle, uuid, disks, of.uri))
    return replace(
        survey,
        disks=surveyed_disks(disks, judged.images),
        state=tuple(part.kind for part in judged.parts),
        left_out=judged.skipped,
        refused=refusals,
    )


def _stopping_refused(handle: Any, uuid: str, disks: Sequence[FileDisk], uri: str) -> tuple[str, ...]:
    """Why a server whose parts can be snapshotted must not be stopped; empty if it may be."""
    try:
        found = handle.lookupByUUIDString(uuid)
        readiness.refuse_unstoppable(found, disks)
        sharing.refuse_overlays(disks, listing.written_down(found, places_of(uri)).ours)
    except DriverError as error:
        return (str(error),)
    except libvirt.libvirtError as error:
        return (f"libvirt reports an error: {error}",)
    return ()


def surveyed_disks(disks: Sequence[FileDisk], images: Mapping[FileDisk, Image]) -> tuple[SurveyedDisk, ...]:
    by_target = {disk.target: image for disk, image in images.items()}
    return tuple(_disk(disk, by_target.get(disk.target)) for disk in disks)


def _disk(disk: FileDisk, image: Image | None) -> SurveyedDisk:
    """`image`: None if it is missing or cannot be read."""
    if image is None:
        return SurveyedDisk(target=disk.target, path=disk.path)
    return SurveyedDisk(
        target=disk.target,
        path=disk.path,
        virtual_bytes=image.virtual_bytes,
        snapshots=len(image.tags),
        bitmaps=len(image.bitmaps),
    )
