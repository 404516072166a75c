"""A server's state outside its disks, with real QEMU, swtpm and libvirt: firmware, TPM, generation ID."""

import re
from datetime import UTC, datetime
from pathlib import Path

import libvirt
import pytest

from deploy.lab import domains
from deploy.lab.domain import UEFI_CODE, UEFI_VARIABLES, disk
from deploy.lab.lab import make_disk
from drivers.base import DisksDiffer, Firmware, InvalidState, SnapshotSpec, UnsupportedServer
from tests import swtpm
from tests.conftest import needs
from tests.contract.harness import ACCOUNT_ID
from tests.contract.kvm_bench import KvmBench, read_text, write_text

pytestmark = pytest.mark.asyncio(loop_scope="session")

SPEC = SnapshotSpec(tag="vps-801", name="n", description="", created_at=datetime(2025, 1, 15, tzinfo=UTC))
# libvirt's version from which such a server does not start: "mishandled storage format 'none'"
STARTS_NO_VARIABLES_BESIDE_WRITABLE_FLASH = 11_000_000
LOADER = f"<loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>"


async def add(bench: KvmBench, *changes: tuple[str, str], tpm: bool = False, machine: str = "q35") -> Path:
    """Add server 1 with one disk and this change of its XML. Returns the disk's path."""
    path = bench.path(1, "vda")
    if not path.exists():
        make_disk(path)
    xml = bench.lab.domain_xml("server-1", [disk(path)], tpm=tpm, memory_mib=256).replace(
        "machine='pc'", f"machine='{machine}'"
    )
    for old, new in changes:
        assert old in xml
        xml = xml.replace(old, new)
    domains.define(bench.connection, xml)
    await bench.hypervisor.adopt("server-1", server_id=1, account_id=ACCOUNT_ID)
    return path


def beside(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir() if found.name.startswith(f"{path.name}."))


class TestFirmware:
    async def test_variables_that_libvirt_chose_go_back_and_are_found_while_it_runs(self, kvm_bench: KvmBench) -> None:
        path = await add(kvm_bench, ("<os>", "<os firmware='efi'>"))
        variables = kvm_bench.lab.folder / "lib" / "qemu" / "nvram" / "server-1_VARS.fd"
        assert not (await kvm_bench.hypervisor.layout(1)).nvram
        await kvm_bench.hypervisor.start(1)
        assert variables.exists()
        assert (await kvm_bench.hypervisor.layout(1)).nvram
        await kvm_bench.hypervisor.cut_power(1)
        before = variables.read_bytes()
        layout = await kvm_bench.hypervisor.layout(1)
        assert layout.nvram
        assert layout.firmware is Firmware.UEFI
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        variables.write_bytes(b"\xff" * len(before))
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert variables.read_bytes() == before
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert beside(path) == []

    async def test_variables_named_over_several_lines_go_back(self, kvm_bench: KvmBench) -> None:
        variables = kvm_bench.lab.disk_path("own.fd")
        variables.write_bytes(Path(UEFI_VARIABLES).read_bytes())
        await add(kvm_bench, ("</os>", f"{LOADER}<nvram type='file'><source file='{variables}'/></nvram></os>"))
        assert re.search(r"<nvram [^>]*type='file'[^>]*>\n", kvm_bench.domain(1).XMLDesc(0))
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        variables.write_bytes(b"changed")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert variables.read_bytes() == Path(UEFI_VARIABLES).read_bytes()

    @pytest.mark.parametrize("beside_variables", [False, True])
    async def test_a_writable_flash_goes_back(self, kvm_bench: KvmBench, beside_variables: bool) -> None:
        flash, variables = kvm_bench.lab.disk_path("flash.fd"), kvm_bench.lab.disk_path("own.fd")
        flash.write_bytes(Path(UEFI_CODE).read_bytes())
        variables.write_bytes(Path(UEFI_VARIABLES).read_bytes())
        named = f"<nvram>{variables}</nvram>" if beside_variables else ""
        path = await add(kvm_bench, ("</os>", f"<loader readonly='no' type='pflash'>{flash}</loader>{named}</os>"))
        before = flash.read_bytes()
        assert (await kvm_bench.hypervisor.layout(1)).nvram
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        assert len(beside(path)) == 1 + beside_variables
        flash.write_bytes(b"changed")
        variables.write_bytes(b"changed")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert flash.read_bytes() == before
        assert (variables.read_bytes() != b"changed") is beside_variables
        if beside_variables and libvirt.getVersion() >= STARTS_NO_VARIABLES_BESIDE_WRITABLE_FLASH:
            return
        await kvm_bench.hypervisor.start(1)
        assert (await kvm_bench.hypervisor.layout(1)).nvram

    async def test_lost_variables_come_back_with_a_restore_and_its_safety_snapshot_works(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, uefi=True)
        variables = kvm_bench.lab.nvram_path("server-1")
        before = variables.read_bytes()
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        variables.unlink()
        safety = SnapshotSpec(tag="vps-safety-9", name="", description="", created_at=SPEC.created_at)
        await kvm_bench.hypervisor.take_snapshot(1, safety)
        assert (await kvm_bench.hypervisor.restore_plan(1, "vps-801")).targets == ("vda", "vdb")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert variables.read_bytes() == before
        assert await kvm_bench.hypervisor.is_at(1, "vps-801")
        variables.write_bytes(b"changed")
        assert not await kvm_bench.hypervisor.is_at(1, "vps-801")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        await kvm_bench.hypervisor.start(1)

    async def test_a_snapshot_from_before_the_first_start_leaves_the_variables_of_today(
        self, kvm_bench: KvmBench
    ) -> None:
        await kvm_bench.add_server(1, uefi=True)
        variables = kvm_bench.lab.nvram_path("server-1")
        variables.unlink()
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.contents is not None
        assert [skipped.target for skipped in found.contents.left_out] == ["nvram"]
        variables.write_bytes(b"of the first start")
        (found,) = await kvm_bench.hypervisor.snapshots(1)
        assert found.complete
        await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert variables.read_bytes() == b"of the first start"

    async def test_changed_firmware_is_reported_and_disks_can_be_restored(self, kvm_bench: KvmBench) -> None:
        path = await add(kvm_bench)
        write_text(path, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        write_text(path, "B")
        variables = kvm_bench.lab.disk_path("own.fd")
        variables.write_bytes(Path(UEFI_VARIABLES).read_bytes())
        written = re.search(r"<metadata>.*?</metadata>", kvm_bench.domain(1).XMLDesc(0), re.DOTALL)
        assert written is not None
        uefi = ("</os>", f"{LOADER}<nvram>{variables}</nvram></os>")
        await add(kvm_bench, uefi, ("<metadata></metadata>", written[0]))
        with pytest.raises(DisksDiffer, match="boots with UEFI now"):
            await kvm_bench.hypervisor.restore_plan(1, "vps-801")
        plan = await kvm_bench.hypervisor.restore_plan(1, "vps-801", present_only=True)
        assert "firmware" in {skipped.target for skipped in plan.not_restored}
        await kvm_bench.hypervisor.revert(1, "vps-801", targets=frozenset(plan.targets))
        assert read_text(path) == "A"

    async def test_copies_go_with_the_snapshot_though_the_server_boots_by_bios_today(self, kvm_bench: KvmBench) -> None:
        variables = kvm_bench.lab.disk_path("own.fd")
        variables.write_bytes(Path(UEFI_VARIABLES).read_bytes())
        path = await add(kvm_bench, ("</os>", f"{LOADER}<nvram>{variables}</nvram></os>"))
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        old = variables.with_name("own.fd.vps-801")  # as older versions left it, which is moved when it is found
        path.with_name(f"{path.name}.vps-801.nvram").rename(old)
        await kvm_bench.hypervisor.list_snapshot(1, SPEC)
        assert beside(path) == [f"{path.name}.vps-801.nvram"]
        await add(kvm_bench)
        assert (await kvm_bench.hypervisor.layout(1)).firmware is Firmware.BIOS
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        assert beside(path) == []
        assert not old.exists()

    async def test_a_firmware_that_changes_with_the_next_start_is_not_snapshotted_before(
        self, kvm_bench: KvmBench
    ) -> None:
        await add(kvm_bench)
        await kvm_bench.hypervisor.start(1)
        variables = kvm_bench.lab.disk_path("own.fd")
        variables.write_bytes(Path(UEFI_VARIABLES).read_bytes())
        await add(kvm_bench, ("</os>", f"{LOADER}<nvram>{variables}</nvram></os>"))
        with pytest.raises(InvalidState, match="firmware"):
            await kvm_bench.hypervisor.layout(1)

    async def test_variables_that_are_a_link_are_refused_before_anything_is_done(self, kvm_bench: KvmBench) -> None:
        await kvm_bench.add_server(1, uefi=True)
        variables = kvm_bench.lab.nvram_path("server-1")
        variables.unlink()
        variables.symlink_to("/etc/passwd")
        with pytest.raises(UnsupportedServer, match="UEFI"):
            await kvm_bench.hypervisor.layout(1)


class TestTpm:
    @pytest.fixture(autouse=True)
    def _programs(self) -> None:
        needs("swtpm")
        needs("swtpm_setup")

    @staticmethod
    def folder(bench: KvmBench, version: str = "tpm2") -> Path:
        return Path(bench.lab.folder, "lib", "swtpm", bench.domain(1).UUIDString(), version)

    async def started_once(self, bench: KvmBench) -> None:
        await bench.hypervisor.start(1)
        await bench.hypervisor.cut_power(1)

    async def test_the_tpms_state_is_restored_with_the_disks(self, kvm_bench: KvmBench) -> None:
        path = await add(kvm_bench, tpm=True)
        await self.started_once(kvm_bench)
        folder = self.folder(kvm_bench)
        swtpm.write(folder, "A")
        write_text(path, "A")
        assert (await kvm_bench.hypervisor.layout(1)).tpm
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        swtpm.write(folder, "B")
        write_text(path, "B")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert swtpm.read(folder) == "A"
        assert read_text(path) == "A"
        await kvm_bench.hypervisor.start(1)
        await kvm_bench.hypervisor.delete_snapshot(1, "vps-801")
        await kvm_bench.hypervisor.cut_power(1)
        assert swtpm.read(folder) == "A"
        assert beside(path) == []

    async def test_a_tpm_whose_state_was_lost_gets_it_back(self, kvm_bench: KvmBench) -> None:
        await add(kvm_bench, tpm=True)
        await self.started_once(kvm_bench)
        folder = self.folder(kvm_bench)
        swtpm.write(folder, "A")
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        for found in folder.iterdir():
            found.unlink()
        folder.rmdir()
        assert not (await kvm_bench.hypervisor.layout(1)).tpm
        await kvm_bench.hypervisor.revert(1, "vps-801")
        await self.started_once(kvm_bench)
        assert swtpm.read(folder) == "A"

    async def test_version_1_2_and_state_that_outlives_the_domain(self, kvm_bench: KvmBench) -> None:
        change = ("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/>",)
        older = "<tpm model='tpm-tis'><backend type='emulator' version='1.2' persistent_state='yes'/>"
        await add(kvm_bench, (*change, older), tpm=True)
        await self.started_once(kvm_bench)
        state = self.folder(kvm_bench, "tpm1.2") / "tpm-00.permall"
        before = state.read_bytes()
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        state.write_bytes(b"ruined")
        await kvm_bench.hypervisor.revert(1, "vps-801")
        assert state.read_bytes() == before
        await kvm_bench.hypervisor.start(1)

    async def test_a_tpm_that_has_never_run_is_left_out_and_named(self, kvm_bench: KvmBench) -> None:
        await add(kvm_bench, tpm=True)
        layout = await kvm_bench.hypervisor.layout(1)
        assert not layout.tpm
        assert [skipped.target for skipped in layout.skipped] == ["tpm"]


class TestGenerationId:
    async def test_a_new_one_is_written_and_nothing_else_changes(self, kvm_bench: KvmBench) -> None:
        await add(
            kvm_bench,
            (
                "<memory ",
                "<genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid><title>it's a &lt;genid&gt;</title>"
                "<description>two\nlines</description><memory ",
            ),
        )
        await kvm_bench.hypervisor.take_snapshot(1, SPEC)
        before = self.definition(kvm_bench)
        assert "<vps:server" in before
        for _ in range(2):
            await kvm_bench.hypervisor.renew_generation_id(1)
        after = self.definition(kvm_bench)
        assert re.sub(r"<genid>.*?</genid>", "", after) == re.sub(r"<genid>.*?</genid>", "", before)
        assert "43dc0cf8-809b-4adb-9bea-a9abb5f3d90e" not in after
        assert [found.complete for found in await kvm_bench.hypervisor.snapshots(1)] == [True]
        await kvm_bench.hypervisor.start(1)
        with pytest.raises(InvalidState):
            await kvm_bench.hypervisor.renew_generation_id(1)

    async def test_secrets_of_the_definition_are_kept(self, kvm_bench: KvmBench) -> None:
        await add(
            kvm_bench,
            ("<memory ", "<genid/><memory "),
            ("<memballoon", "<graphics type='vnc' passwd='secret'/><memballoon"),
        )
        await kvm_bench.hypervisor.renew_generation_id(1)
        assert "passwd='secret'" in self.definition(kvm_bench)

    async def test_a_server_without_one_gets_none(self, kvm_bench: KvmBench) -> None:
        await add(kvm_bench)
        before = self.definition(kvm_bench)
        await kvm_bench.hypervisor.renew_generation_id(1)
        assert self.definition(kvm_bench) == before

    @staticmethod
    def definition(bench: KvmBench) -> str:
        xml: str = bench.domain(1).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        return xml
