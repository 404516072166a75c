"""A guest that has escaped acts as QEMU's user: it creates files and links in the folders that this user can write to.

No file of root reaches a guest or leaves its folder, and no guest's data reaches a file of root.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from drivers import safe_files
from drivers.kvm.domain_xml import Kind, StatePart
from drivers.kvm.places import Places
from drivers.kvm.state_copies import Copies
from drivers.safe_files import Planted
from tests.conftest import needs_root

QEMU, OTHER = 64055, 64056
TAG = "vps-801"
SECRET = b"of root"
REFUSED = r"regular file|several names|another user|has a link"


@pytest.fixture(autouse=True)
def _root() -> None:
    needs_root()


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's folders as libvirt creates them, files of root, and a server with UEFI variables and a TPM."""
    tmp_path.chmod(0o711)
    for folder, owner, mode in (
        ("images", 0, 0o711),
        ("lib", 0, 0o755),
        ("lib/qemu", QEMU, 0o751),
        ("lib/qemu/nvram", QEMU, 0o755),
        ("swtpm", 0, 0o711),
        ("swtpm/uuid", 0, 0o711),
        ("swtpm/uuid/tpm2", QEMU, 0o700),
        ("etc", 0, 0o755),
        ("etc/tpm2", 0, 0o755),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(mode)
        os.chown(tmp_path / folder, owner, owner)
    for name in ("etc/secret", "etc/VARS.fd", "etc/tpm2/tpm2-00.permall"):
        (tmp_path / name).write_bytes(SECRET)
        (tmp_path / name).chmod(0o600)
    (tmp_path / "images" / "vda.qcow2").write_bytes(b"a disk")
    make(tmp_path / "lib/qemu/nvram/VARS.fd", b"variables")
    make(tmp_path / "swtpm/uuid/tpm2/tpm2-00.permall", b"tpm")
    return tmp_path


def make(path: Path, content: bytes, owner: int = QEMU, mode: int = 0o600) -> None:
    path.write_bytes(content)
    os.chown(path, owner, owner)
    path.chmod(mode)


def link(path: Path, target: Path, owner: int = QEMU) -> None:
    """Replace the path with a link, as a user who can write to the folder does; the original is beside it."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.aside"))
    path.symlink_to(target)
    os.chown(path, owner, owner, follow_symlinks=False)


def copies(host: Path, image: str = "images/vda.qcow2") -> Copies:
    return Copies(
        images=[host / image],
        parts=[
            StatePart(kind=Kind.NVRAM, path=host / "lib/qemu/nvram/VARS.fd"),
            StatePart(kind=Kind.TPM, path=host / "swtpm/uuid/tpm2", folder=True),
        ],
        places=Places(variables=host / "lib/qemu/nvram", tpms=host / "swtpm"),
    )


def is_untouched(host: Path) -> bool:
    """Whether root's files are unchanged, alone in their folder, and not in any copy."""
    files = [path for path in (host / "etc").rglob("*") if path.is_file()]
    copied = [path for path in (host / "images").iterdir() if SECRET in path.read_bytes()]
    return len(files) == 3 and not copied and all(path.read_bytes() == SECRET for path in files)


def file_link(host: Path) -> None:
    link(host / "lib/qemu/nvram/VARS.fd", host / "etc/secret")


def folder_link(host: Path) -> None:
    link(host / "lib/qemu/nvram", host / "etc")


def hard_link(host: Path) -> None:
    (host / "lib/qemu/nvram/VARS.fd").unlink()
    os.link(host / "etc/secret", host / "lib/qemu/nvram/VARS.fd")


def others_file(host: Path) -> None:
    make(host / "lib/qemu/nvram/VARS.fd", b"of root", OTHER)


def device(host: Path) -> None:
    (host / "lib/qemu/nvram/VARS.fd").unlink()
    os.mkfifo(host / "lib/qemu/nvram/VARS.fd")


def link_in_tpm(host: Path) -> None:
    link(host / "swtpm/uuid/tpm2/tpm2-00.permall", host / "etc/secret")


def hard_link_in_tpm(host: Path) -> None:
    (host / "swtpm/uuid/tpm2/tpm2-00.permall").unlink()
    os.link(host / "etc/secret", host / "swtpm/uuid/tpm2/tpm2-00.permall")


def tpm_folder_link(host: Path) -> None:
    os.chown(host / "swtpm/uuid", QEMU, QEMU)
    link(host / "swtpm/uuid/tpm2", host / "etc/tpm2")


PLANTS = [file_link, folder_link, hard_link, others_file, device, link_in_tpm, hard_link_in_tpm, tpm_folder_link]


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_files_are_refused_before_the_stop_and_never_copied(host: Path, plant: Callable[[Path], None]) -> None:
    plant(host)
    server = copies(host)
    with pytest.raises(OSError, match=REFUSED):
        server.present()
    with pytest.raises(OSError, match=REFUSED):
        server.save(TAG)
    assert is_untouched(host)


@pytest.mark.parametrize("plant", PLANTS)
def test_no_guest_writes_through_what_is_planted(host: Path, plant: Callable[[Path], None]) -> None:
    server = copies(host)
    server.save(TAG)
    make(host / "lib/qemu/nvram/VARS.fd", b"changed")
    make(host / "swtpm/uuid/tpm2/tpm2-00.permall", b"changed")
    plant(host)
    with suppress(OSError):
        server.restore(TAG)
    assert is_untouched(host)


def test_a_lost_tpm_is_not_made_through_a_link(host: Path) -> None:
    server = copies(host)
    server.save(TAG)
    (host / "swtpm/uuid/tpm2/tpm2-00.permall").unlink()
    (host / "swtpm/uuid/tpm2").rmdir()
    os.chown(host / "swtpm", QEMU, QEMU)
    link(host / "swtpm/uuid", host / "etc")
    with pytest.raises(Planted):
        server.restore(TAG)
    assert (host / "etc/tpm2").stat().st_uid == 0
    assert is_untouched(host)


@pytest.mark.parametrize(("owner", "mode"), [(QEMU, 0o711), (0, 0o777)])
def test_copies_where_qemus_user_could_exchange_them_are_neither_written_nor_used(
    host: Path, owner: int, mode: int
) -> None:
    server = copies(host)
    server.save(TAG)
    os.chown(host / "images", owner, owner)
    (host / "images").chmod(mode)
    for refused in (
        server.refuse_unwritable,
        lambda: server.save("vps-802"),
        lambda: server.restore(TAG),
        lambda: server.refuse_unrestorable(TAG),
    ):
        with pytest.raises(Planted, match="QEMU's user can write to a folder on the path"):
            refused()
    server.delete(TAG)
    assert [path.name for path in (host / "images").iterdir()] == ["vda.qcow2"]


def test_copies_in_a_folder_of_the_providers_own_user_are_used(host: Path) -> None:
    os.chown(host / "images", OTHER, OTHER)
    server = copies(host)
    server.refuse_unwritable()
    server.save(TAG)
    make(host / "lib/qemu/nvram/VARS.fd", b"changed")
    server.restore(TAG)
    assert (host / "lib/qemu/nvram/VARS.fd").read_bytes() == b"variables"


def test_a_copy_that_others_have_made_is_not_used(host: Path) -> None:
    (host / "images").chmod(0o1777)
    make(host / "images" / "vda.qcow2.vps-801.nvram", b"of another server")
    with pytest.raises(OSError, match="belongs to another user"):
        copies(host).restore(TAG)
    assert (host / "lib/qemu/nvram/VARS.fd").read_bytes() == b"variables"


def test_a_restored_file_is_never_set_user_id(host: Path) -> None:
    server = copies(host)
    server.save(TAG)
    make(host / "lib/qemu/nvram/VARS.fd", b"changed", owner=0, mode=0o4755)
    server.restore(TAG)
    assert (host / "lib/qemu/nvram/VARS.fd").stat().st_mode & 0o7777 == 0o644


@contextmanager
def exchanging(path: Path, other: Path) -> Iterator[None]:
    """Swap the two repeatedly, as fast as possible."""
    over = threading.Event()

    def exchange() -> None:
        spare = path.with_name("spare")
        while not over.is_set():
            path.rename(spare)
            other.rename(path)
            path.rename(other)
            spare.rename(path)

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("what", ["the folder", "the file"])
def test_no_race_opens_what_is_planted(host: Path, what: str) -> None:
    server = copies(host)
    server.save("vps-800")
    folder = host / "lib/qemu/nvram"
    place = folder if what == "the folder" else folder / "VARS.fd"
    (place.parent / "planted").symlink_to(host / ("etc" if what == "the folder" else "etc/secret"))
    os.chown(place.parent / "planted", QEMU, QEMU, follow_symlinks=False)
    with exchanging(place, place.parent / "planted"):
        for _ in range(200):
            with suppress(OSError):
                server.save(TAG)
            with suppress(OSError):
                server.restore("vps-800")
    assert is_untouched(host)


def test_links_that_root_has_made_are_followed(host: Path) -> None:
    (host / "pool").symlink_to("images")
    server = copies(host, "pool/vda.qcow2")
    server.save(TAG)
    assert server.is_at(TAG)
    with safe_files.regular(host / "pool" / "vda.qcow2") as file:
        assert os.pread(file, 6, 0) == b"a disk"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("circle", "too many links"),
        ("no/such", "No such file"),
        ("images", "not a regular file"),
        ("etc/secret/x", "Not a directory"),
    ],
)
def test_a_path_that_leads_nowhere_says_so(host: Path, path: str, error: str) -> None:
    (host / "circle").symlink_to("circle")
    with pytest.raises(OSError, match=error), safe_files.regular(host / path):
        pass
    with pytest.raises(Planted, match="not absolute"), safe_files.regular("etc/secret"):
        pass
