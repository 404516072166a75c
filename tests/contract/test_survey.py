"""The survey of a folder and of a libvirt, on real images: what a snapshot would hold, and nothing is changed."""

import json
from pathlib import Path

import pytest

from deploy.lab.domain import Device, disk
from deploy.lab.lab import make_disk
from drivers.base import InvalidState, Surveyed, UnsupportedServer
from drivers.kvm import survey_folder, survey_libvirt
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


async def test_a_libvirt_is_surveyed_with_the_words_of_the_preflight(kvm_bench: KvmBench) -> None:
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


async def test_a_server_that_could_be_snapshotted_at_another_time_is_told_apart(kvm_bench: KvmBench) -> None:
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
    before = contents(tmp_path)
    surveyed = await survey_folder(tmp_path)
    assert contents(tmp_path) == before
    assert len(surveyed) == 6
    web = named(surveyed, "/web.xml")
    assert web.refused == ()
    assert [(held.target, held.virtual_bytes, held.snapshots) for held in web.disks] == [
        ("vda", 64 << 20, 1),
        ("vdb", None, 0),
    ]
    assert web.noticed == ("disk vdb: its image is not here; only its definition was checked",)
    assert named(surveyed, "/status.xml").refused == ()
    assert "XML" in named(surveyed, "/torn.xml").refused[0]
    assert named(surveyed, "/alone.qcow2").refused == ()
    assert "qcow2" in named(surveyed, "/alone.raw").refused[0]
    assert "cannot be read" in named(surveyed, "/forged").refused[0]
    text = as_text(surveyed)
    assert text.endswith("Servers: 6. Can be snapshotted: 3. Refused: 3. With parts left out: 0.")
    told = json.loads(as_json(surveyed))
    assert told["summary"] == {"servers": 6, "can_be_snapshotted": 3, "refused": 3, "left_out": 0}
    assert [server["can_be_snapshotted"] for server in told["servers"]].count(True) == 3


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
