"""Copies of UEFI variables and TPM state in folders that others can write to."""

import os
from pathlib import Path

import pytest

from drivers.base import Contents, Firmware, SkippedDisk
from drivers.kvm.domain_xml import Kind, StatePart
from drivers.kvm.plan import StateBeside, differing_state
from drivers.kvm.state_copies import Copies
from drivers.kvm.state_files import MAX_BYTES, NotPlain

TAG = "vps-801"


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    """The copies of a server with UEFI variables and a TPM, both in use."""
    for folder in ("disks", "vars", "tpm/uuid/tpm2"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "disks" / "vda.qcow2").write_bytes(b"a disk")
    (tmp_path / "vars" / "VARS.fd").write_bytes(b"variables A")
    (tmp_path / "tpm/uuid/tpm2/tpm2-00.permall").write_bytes(b"tpm A")
    (tmp_path / "tpm/uuid/tpm2/.lock").touch()
    return Copies(
        images=[tmp_path / "disks" / "vda.qcow2"],
        parts=[
            StatePart(kind=Kind.NVRAM, path=tmp_path / "vars" / "VARS.fd"),
            StatePart(kind=Kind.TPM, path=tmp_path / "tpm" / "uuid" / "tpm2", folder=True),
        ],
    )


def variables(copies: Copies) -> Path:
    return copies.parts[0].path


def tpm(copies: Copies) -> Path:
    return copies.parts[1].path / "tpm2-00.permall"


def beside_the_disk(copies: Copies) -> list[str]:
    return sorted(path.name for path in copies.images[0].parent.iterdir() if path != copies.images[0])


def test_both_are_restored_unchanged_and_a_delete_leaves_nothing(copies: Copies) -> None:
    copies.save(TAG)
    assert beside_the_disk(copies) == ["vda.qcow2.vps-801.nvram", "vda.qcow2.vps-801.tpm"]
    assert copies.tags() == {TAG: {Kind.NVRAM, Kind.TPM}}
    assert copies.is_at(TAG)
    variables(copies).write_bytes(b"variables B")
    variables(copies).chmod(0o640)
    tpm(copies).write_bytes(b"tpm B")
    (tpm(copies).parent / "more").write_bytes(b"of B")
    assert not copies.is_at(TAG)
    copies.restore(TAG)
    assert copies.is_at(TAG)
    assert variables(copies).read_bytes() == b"variables A"
    assert variables(copies).stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tpm(copies).parent.iterdir()) == [".lock", "tpm2-00.permall"]
    copies.delete(TAG)
    assert beside_the_disk(copies) == []
    assert copies.tags() == {}


@pytest.mark.parametrize("changed", ["tpm", "variables"])
def test_one_that_differs_is_enough(copies: Copies, changed: str) -> None:
    copies.save(TAG)
    (tpm(copies) if changed == "tpm" else variables(copies)).write_bytes(b"B")
    assert not copies.is_at(TAG)


def test_unchanged_files_are_not_written_again(copies: Copies) -> None:
    # A rollback must not need the space that the step forward lacked.
    copies.save(TAG)
    (variables(copies).parent / "VARS.fd.new").mkdir()  # no new file can be written
    copies.restore(TAG)
    variables(copies).write_bytes(b"variables B")
    with pytest.raises(OSError, match=r"VARS\.fd\.new"):
        copies.restore(TAG)


def test_an_impossible_restore_is_refused_before(copies: Copies, tmp_path: Path) -> None:
    copies.save(TAG)
    copies.refuse_unrestorable(TAG)
    full = Copies(images=copies.images, parts=[StatePart(kind=Kind.NVRAM, path=Path("/proc/VARS.fd"))])
    with pytest.raises(NotPlain, match="/proc"):
        full.refuse_unrestorable(TAG)


def test_lost_files_come_back_with_the_disks_permissions(copies: Copies) -> None:
    copies.save(TAG)
    os.chown(copies.images[0], os.geteuid(), os.getegid())
    variables(copies).unlink()
    for path in tpm(copies).parent.iterdir():
        path.unlink()
    tpm(copies).parent.rmdir()
    tpm(copies).parent.parent.rmdir()
    assert copies.present() == ()
    copies.restore(TAG)
    assert variables(copies).read_bytes() == b"variables A"
    assert variables(copies).stat().st_mode & 0o777 == 0o600
    assert tpm(copies).read_bytes() == b"tpm A"


def test_a_missing_file_has_no_copy_and_a_later_one_stays(copies: Copies) -> None:
    variables(copies).unlink()
    tpm(copies).unlink()
    copies.save(TAG)
    assert beside_the_disk(copies) == []
    variables(copies).write_bytes(b"made by the first start")
    copies.restore(TAG)
    assert variables(copies).read_bytes() == b"made by the first start"


@pytest.mark.parametrize("what", ["link", "folder", "fifo", "large"])
@pytest.mark.parametrize("where", ["variables", "tpm"])
def test_only_a_small_regular_file_is_read(copies: Copies, tmp_path: Path, what: str, where: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    path = tpm(copies) if where == "tpm" else variables(copies)
    path.unlink()
    match what:
        case "link":
            path.symlink_to(secret)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            with path.open("wb") as file:
                file.truncate(MAX_BYTES + 1)
    with pytest.raises(NotPlain):
        copies.present()
    with pytest.raises(NotPlain):
        copies.save(TAG)


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(copies: Copies, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    for name in ("vda.qcow2.vps-801.nvram", "vda.qcow2.vps-801.nvram.new"):
        (copies.images[0].parent / name).symlink_to(secret)
    copies.save(TAG)
    variables(copies).write_bytes(b"variables B")
    tpm(copies).write_bytes(b"tpm B")
    variables(copies).with_name("VARS.fd.new").symlink_to(secret)
    (tpm(copies).parent / "tpm2-00.permall.new").symlink_to(secret)
    copies.restore(TAG)
    assert secret.read_bytes() == b"of the host"
    assert variables(copies).read_bytes() == b"variables A"


def test_a_copy_that_became_a_link_is_not_restored(copies: Copies, tmp_path: Path) -> None:
    copies.save(TAG)
    copy = copies.images[0].parent / "vda.qcow2.vps-801.nvram"
    copy.unlink()
    copy.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"of the host")
    with pytest.raises(NotPlain):
        copies.restore(TAG)


@pytest.mark.parametrize("tag", ["../../etc/x", "a/b", "", "t" * 300])
def test_a_tag_of_others_that_is_no_name_of_a_file_has_no_copy(copies: Copies, tag: str) -> None:
    assert copies.is_at(tag)
    copies.restore(tag)
    copies.delete(tag)
    assert variables(copies).read_bytes() == b"variables A"


def test_copies_of_older_versions_are_found_used_and_deleted(copies: Copies) -> None:
    old = variables(copies).with_name("VARS.fd.vps-801")
    old.write_bytes(b"variables then")
    variables(copies).with_name("VARS.fd.bak").write_bytes(b"someone's")
    assert copies.tags() == {TAG: {Kind.NVRAM}}
    copies.restore(TAG)
    assert variables(copies).read_bytes() == b"variables then"
    copies.delete(TAG)
    assert not old.exists()
    assert variables(copies).with_name("VARS.fd.bak").exists()


def test_copies_go_also_when_the_server_boots_by_bios_today(copies: Copies) -> None:
    copies.save(TAG)
    old = variables(copies).with_name("VARS.fd.vps-801")
    old.write_bytes(b"of an older version")
    Copies(images=copies.images, former=[variables(copies)]).delete(TAG)
    assert beside_the_disk(copies) == []
    assert not old.exists()


def test_copies_of_another_server_in_the_same_folder_are_not_taken_for_ones_own(copies: Copies) -> None:
    other = copies.images[0].with_name("vda.qcow2.old")
    other.write_bytes(b"another disk")
    Copies(images=[other], parts=copies.parts).save(TAG)
    assert copies.tags() == {}


def test_an_image_with_a_long_name_has_copies_too(copies: Copies) -> None:
    image = copies.images[0].with_name("d" * 250)
    image.write_bytes(b"a disk")
    long = Copies(images=[image], parts=copies.parts)
    long.save("vps-safety-0123456789abcdef0123456789abcdef")
    assert [*long.tags()] == ["vps-safety-0123456789abcdef0123456789abcdef"]


def test_a_tpm_of_another_version_is_reported_and_left_alone(copies: Copies, tmp_path: Path) -> None:
    copies.save(TAG)
    older = StatePart(kind=Kind.TPM, path=tmp_path / "tpm" / "uuid" / "tpm1.2", folder=True)
    today = Copies(images=copies.images, parts=[older])
    assert today.unfit(TAG) == {Kind.TPM}
    assert copies.unfit(TAG) == frozenset()
    today.restore(TAG)
    assert not older.path.exists()


def test_a_copy_of_an_older_version_is_brought_beside_the_disk(copies: Copies) -> None:
    old = variables(copies).with_name("VARS.fd.vps-801")
    old.write_bytes(b"variables then")
    for _ in range(2):
        copies.move_former(TAG)
    assert beside_the_disk(copies) == ["vda.qcow2.vps-801.nvram"]
    assert not old.exists()
    copies.restore(TAG)
    assert variables(copies).read_bytes() == b"variables then"


def both(*, firmware: Firmware = Firmware.UEFI, nvram: bool = True, tpm: bool = True) -> StateBeside:
    return StateBeside(nvram=nvram, tpm=tpm, firmware=firmware)


def contents(*, firmware: Firmware = Firmware.UEFI, nvram: bool = True, tpm: bool = True, later: str = "") -> Contents:
    none_yet = (SkippedDisk(target=later, reason="none yet"),) if later else ()
    return Contents(disks=(), left_out=none_yet, firmware=firmware, nvram=nvram, tpm=tpm)


@pytest.mark.parametrize(
    ("held", "now", "present", "copied", "words"),
    [
        (contents(), both(), both(), both(), None),
        (contents(), both(), both(nvram=False, tpm=False), both(), None),  # lost: they are restored
        (contents(tpm=False, later="tpm"), both(), both(), both(tpm=False), None),  # the TPM had never run
        (contents(tpm=False), both(), both(), both(tpm=False), "has TPM state, but the snapshot holds none"),
        (contents(), both(tpm=False), both(tpm=False), both(), "holds TPM state, but the server has none"),
        (contents(), both(), both(), both(nvram=False), "copy of the UEFI variables is missing"),
        (contents(), both(firmware=Firmware.BIOS), both(), both(), "boots with BIOS now"),
        (contents(firmware=Firmware.BIOS), both(), both(), both(), "booted with BIOS when"),
        (None, both(), both(), both(), None),
        (None, both(), both(), both(nvram=False), "has UEFI variables, but the snapshot holds none"),
    ],
)
def test_a_server_whose_firmware_or_tpm_is_another_differs(
    held: Contents | None, now: StateBeside, present: StateBeside, copied: StateBeside, words: str | None
) -> None:
    reasons = " ".join(skipped.reason for skipped in differing_state(held, now, present, copied))
    assert (words or "") in reasons
    assert bool(reasons) is (words is not None)
