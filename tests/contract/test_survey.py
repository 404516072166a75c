"""The survey of a folder and of a libvirt with real images: what a snapshot would hold. Nothing is changed."""

import json
import os
import tempfile
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import make_disk
from drivers.base import InvalidState, Surveyed, UnsupportedServer
from drivers.kvm import hidden, survey_folder, survey_libvirt
from drivers.kvm.domain_xml import unknown_volume
from drivers.kvm.libvirt_xml import read
from drivers.kvm.places import SYSTEM
from tests.conftest import needs
from tests.contract.harness import ACCOUNT_ID
from tests.contract.kvm_bench import KvmBench, qemu_img
from worker.survey import as_json, as_text

pytestmark = pytest.mark.asyncio(loop_scope="session")

DOMAINS = Path(__file__).parents[1] / "unit" / "domains"


def named(surveyed: list[Surveyed], name: str) -> Surveyed:
    return next(one for one in surveyed if name in one.name)


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


async def test_a_survey_of_a_libvirt_has_the_preflights_messages(kvm_bench: KvmBench) -> None:
    lab = kvm_bench.lab
    await kvm_bench.add_server(1, uefi=True, running=True)
    raw = Device(path=make_disk(lab.disk_path("raw"), format="raw"), format="raw")
    shared = Device(path=kvm_bench.path(1, "vdb"), readonly=True)
    await kvm_bench.add_domain(2, [raw, shared, disk(make_disk(lab.disk_path("own")))], adopted=False)
    surveyed = await survey_libvirt(lab.uri)
    first, second = named(surveyed, "server-1"), named(surveyed, "server-2")
    assert (first.server_id, second.server_id) == (1, None)
    assert first.refused == ("disk vdb cannot be snapshotted: a disk of another server is based on it, or reads it",)
    with pytest.raises(UnsupportedServer, match=f"^{first.refused[0]}$"):
        await kvm_bench.hypervisor.layout(1)
    assert [found.target for found in first.disks] == ["vda", "vdb"]
    assert first.state == ("nvram",)
    assert second.refused == ("disk vda is raw, and only qcow2 can be snapshotted",)
    assert [(skipped.target, skipped.reason) for skipped in second.left_out] == [("vdb", "it is read-only")]
    await kvm_bench.hypervisor.adopt("server-2", server_id=2, account_id=ACCOUNT_ID)
    with pytest.raises(UnsupportedServer, match=f"^{second.refused[0]}$"):
        await kvm_bench.hypervisor.layout(2)


async def test_a_server_that_is_refused_only_for_now_is_told_apart(kvm_bench: KvmBench) -> None:
    await kvm_bench.add_server(1, running=True)
    kvm_bench.suspend(1)
    (found,) = await survey_libvirt(kvm_bench.lab.uri)
    assert found.refused == ("the server is suspended",)
    assert [held.target for held in found.disks] == ["vda", "vdb"]


async def test_a_server_that_could_not_start_again_is_refused_as_the_preflight_does(kvm_bench: KvmBench) -> None:
    lab = kvm_bench.lab
    inserted = make_disk(lab.disk_path("inserted"), format="raw")
    disks = [disk(make_disk(lab.disk_path("own"))), Device(path=inserted, format="raw", cdrom=True)]
    await kvm_bench.add_domain(1, disks)
    await kvm_bench.hypervisor.start(1)
    assert [found.refused for found in await survey_libvirt(lab.uri)] == [()]
    inserted.unlink()
    with pytest.raises(InvalidState) as refused:
        await kvm_bench.hypervisor.layout(1)
    assert [found.refused for found in await survey_libvirt(lab.uri)] == [(str(refused.value),)]


async def test_files_that_the_workers_unit_hides_are_named(kvm_bench: KvmBench) -> None:
    """The worker would find them missing, but the survey is run from a shell."""
    lab = kvm_bench.lab
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        base, link = make_disk(Path(folder) / "base"), lab.disk_path("link")
        link.symlink_to(make_disk(Path(folder) / "linked"))
        overlay = make_disk(lab.disk_path("overlay"), backing=base)
        inserted = Device(path=make_disk(Path(folder) / "iso", format="raw"), format="raw", cdrom=True, readonly=True)
        await kvm_bench.add_domain(1, [disk(overlay), disk(link), inserted])
        (found,) = await survey_libvirt(lab.uri)
        where = "below /var/tmp, which the worker sees only if its unit has PrivateTmp=no"
        assert found.refused == ()
        assert [note for note in found.noticed if "/var/tmp" in note] == [
            f"a backing file of disk vda is {where}: {base}",
            f"the file of disk vdb is {where}: {link}",
            f"the file of cdrom sda is {where}: {inserted.path}",
        ]
    assert f"  note      the file of disk vdb is {where}: {link}" in as_text([found])


@pytest.mark.parametrize(
    ("path", "option"),
    [
        ("/home/pool/a", "ProtectHome=no"),
        ("/root/a", "ProtectHome=no"),
        ("/tmp/a", "PrivateTmp=no"),
        ("/dev/vg0/a", "PrivateDevices=no"),
        ("/dev/shm/a", None),
        ("/homes/a", None),
        ("/var/lib/libvirt/images/a", None),
    ],
)
async def test_only_the_folders_that_the_unit_hides_are_named(path: str, option: str | None) -> None:
    domain = read(f"<domain><devices><disk><source file='{path}'/><target dev='vda'/></disk></devices></domain>")
    said = [*hidden.notes(domain, SYSTEM, unknown_volume)]
    assert [note.partition("its unit has ")[2] for note in said] == ([f"{option}: {path}"] if option else [])


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        ("<os><nvram>/home/v.fd</nvram></os>", "the file of the UEFI variables"),
        ("<os><nvram type='file'>\n<source file='/home/v.fd'/>\n</nvram></os>", "the file of the UEFI variables"),
        ("<os><varstore path='/home/v.json'/></os>", "the file of the UEFI variables"),
        ("<os><loader type='pflash' readonly='no'>/home/f.fd</loader></os>", "the file of <loader>"),
        ("<os><kernel>/usr/lib/modules/6.1/vmlinuz</kernel></os>", "the file of <kernel>"),
        (
            "<devices><tpm><backend type='emulator'><source type='dir' path='/home/t'/></backend></tpm></devices>",
            "the folder of the state of the TPM",
        ),
        ("<os><kernel>\n  </kernel><loader type='rom'> </loader></os>", None),
    ],
)
async def test_every_file_of_the_firmware_that_the_unit_hides_is_named(parts: str, word: str | None) -> None:
    said = [*hidden.notes(read(f"<domain>{parts}</domain>"), SYSTEM, unknown_volume)]
    assert [note.partition(" is below ")[0] for note in said] == ([word] if word else [])


async def test_a_path_that_leads_through_a_hidden_link_is_named() -> None:
    """The worker does not see the link, although it would see the file."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as visible, tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        disk_file, link, way = Path(visible) / "a.qcow2", Path(folder) / "vms", Path(visible) / "way"
        disk_file.touch()
        link.symlink_to(visible)
        way.symlink_to(os.path.relpath(link, visible))
        for path, is_named in {disk_file: False, link / "a.qcow2": True, way / "a.qcow2": True}.items():
            xml = f"<domain><devices><disk><source file='{path}'/><target dev='vda'/></disk></devices></domain>"
            said = [*hidden.notes(read(xml), SYSTEM, unknown_volume)]
            assert len(said) == is_named, (path, said)


async def test_a_folder_of_definitions_and_images_is_surveyed_and_stays_as_it_is(tmp_path: Path) -> None:
    needs("qemu-img")
    plain = (DOMAINS / "two-disks.xml").read_text()
    (tmp_path / "web.xml").write_text(plain)
    make_disk(tmp_path / "vda.qcow2")
    qemu_img("snapshot", "-c", "theirs", str(tmp_path / "vda.qcow2"))
    (tmp_path / "network.xml").write_text("<network><name>default</name></network>")
    (tmp_path / "torn.xml").write_text("<domain><name>x")
    (tmp_path / "status.xml").write_text(f"<domstatus state='running'>{plain.partition('-->')[2]}</domstatus>")
    make_disk(tmp_path / "alone.qcow2")
    make_disk(tmp_path / "alone.raw", format="raw")
    (tmp_path / "forged").write_bytes(b"QFI\xfb" + b"\xff" * 200)
    (tmp_path / "readme.txt").write_text("no image")
    (tmp_path / "autostart").mkdir()
    (tmp_path / "autostart" / "web.xml").symlink_to(tmp_path / "web.xml")
    before = contents(tmp_path)
    surveyed = await survey_folder(tmp_path)
    assert contents(tmp_path) == before
    assert len(surveyed) == 6
    web = named(surveyed, "/web.xml")
    assert (web.refused, web.not_judged) == ((), ("disk vdb: its image was not found",))
    assert [(held.target, held.virtual_bytes, held.snapshots) for held in web.disks] == [
        ("vda", 64 << 20, 1),
        ("vdb", None, 0),
    ]
    (twin,) = web.noticed
    assert "/status.xml) is the same domain" in twin
    assert named(surveyed, "/status.xml").refused == ()
    assert "XML" in named(surveyed, "/torn.xml").refused[0]
    assert named(surveyed, "/alone.qcow2").refused == ()
    assert "qcow2" in named(surveyed, "/alone.raw").refused[0]
    assert "cannot be read" in named(surveyed, "/forged").refused[0]
    text = as_text(surveyed)
    assert text.endswith("Servers: 6. Can be snapshotted: 1. Refused: 3. Image not found: 2. With parts left out: 0.")
    told = json.loads(as_json(surveyed))
    assert told["summary"] == {
        "servers": 6,
        "can_be_snapshotted": 1,
        "refused": 3,
        "not_judged": 2,
        "left_out": 0,
    }
    verdicts = [server["can_be_snapshotted"] for server in told["servers"]]
    assert [verdicts.count(verdict) for verdict in (True, False, None)] == [1, 3, 2]


def definition(name: str, *disks: Device) -> str:
    """The XML of a domain with these disks, as libvirt writes it."""
    elements = "".join(
        f"<disk type='file' device='{'cdrom' if one.cdrom else 'disk'}'><driver name='qemu' type='{one.format}'/>"
        f"<source file='{one.path}'/><target dev='sd{'abcd'[number]}'/>{'<readonly/>' * one.readonly}</disk>"
        for number, one in enumerate(disks)
    )
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{uuid5(NAMESPACE_DNS, name)}</uuid>"
        f"<os><type>hvm</type></os><devices>{elements}</devices></domain>"
    )


async def test_the_definitions_of_a_folder_are_seen_together(tmp_path: Path) -> None:
    needs("qemu-img")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    own, shared, base = (make_disk(tmp_path / f"{name}.qcow2") for name in ("own", "shared", "base"))
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay))
    written = {
        "a/first.xml": definition("first", disk(own), disk(Path("/gone/shared.qcow2"))),  # found by its name
        "second.xml": definition("second", disk(shared)),
        "third.xml": definition("third", Device(path=Path("/moved/shared.qcow2"), readonly=True)),  # found beside it
        "fourth.xml": definition("fourth", disk(overlay)),
        "fifth.xml": definition("fifth", disk(base)),
        "a/sixth.xml": definition("sixth", disk(Path("/none/x.qcow2"))),
        "b/seventh.xml": definition("seventh", disk(Path("/none/x.qcow2"))),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    surveyed = {one.name.partition(" ")[0]: one for one in await survey_folder(tmp_path)}
    assert surveyed.keys() == {"first", "second", "third", "fourth", "fifth", "sixth", "seventh"}
    read = "disk sda cannot be snapshotted: a disk of another server is based on it, or reads it"
    assert surveyed["second"].refused == (read,)
    assert surveyed["fifth"].refused == (read,)
    assert (
        f"fourth ({tmp_path}/fourth.xml) uses its file as well, or has a disk based on it"
        in surveyed["fifth"].noticed[0]
    )
    assert f"third ({tmp_path}/third.xml)" in surveyed["second"].noticed[0]
    for name in ("first", "fourth"):  # a file that was found only by its name may belong to another node
        assert (surveyed[name].refused, surveyed[name].noticed) == ((), ())
    for name, other in (("sixth", "seventh"), ("seventh", "sixth")):
        assert (surveyed[name].refused, surveyed[name].not_judged) == ((), ("disk sda: its image was not found",))
        assert f"{other} (" in surveyed[name].noticed[0]
        assert "has a file at the same path" in surveyed[name].noticed[0]


async def test_an_image_of_a_definition_is_no_server_of_its_own_whatever_becomes_of_it(tmp_path: Path) -> None:
    needs("qemu-img")
    base = make_disk(tmp_path / "base.qcow2")
    overlay = tmp_path / "overlay.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay))
    (tmp_path / "link.qcow2").hardlink_to(overlay)
    raw = Device(path=make_disk(tmp_path / "data.raw", format="raw"), format="raw")
    disc = Device(path=make_disk(tmp_path / "install.img", format="raw"), format="raw", cdrom=True)
    (tmp_path / "web.xml").write_text(definition("web", disk(overlay), raw, disc))
    (found,) = await survey_folder(tmp_path)
    assert found.refused == ("disk sdb is raw, and only qcow2 can be snapshotted",)
    assert [skipped.target for skipped in found.left_out] == ["sdc"]
    make_disk(tmp_path / "alone.qcow2")
    assert {one.name for one in await survey_folder(tmp_path)} - {found.name} == {str(tmp_path / "alone.qcow2")}


async def test_names_that_a_terminal_would_obey_are_not_passed_to_it() -> None:
    shown = as_text([Surveyed(name="a\x1b[31m\nb", refused=("x\x07",))])
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert shown.count("\n") == 2


async def test_every_domain_that_is_read_somewhere_else_is_surveyed_too() -> None:
    surveyed = await survey_folder(DOMAINS)
    assert len(surveyed) == len([*DOMAINS.glob("*.xml")])
    refused = {one.name for one in surveyed if one.refused}
    assert any("persistent-memory" in name for name in refused)
    assert not any("/plain.xml" in name for name in refused)
    assert all(one.refused or one.not_judged for one in surveyed)  # the images are not on this machine
