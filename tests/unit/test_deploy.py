"""The shipped files fit the programs."""

import configparser
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from api.gateway.settings import GatewaySettings
from api.settings import ApiSettings
from tests.conftest import needs, needs_module
from worker.program.alive import HUNG_SECONDS
from worker.program.configuration import ENV_PREFIX, ConfigurationError, FileSettings, load
from worker.program.span_export import SHUTDOWN_SECONDS
from worker.runner import LAST_WORDS_SECONDS
from worker.settings import WorkerSettings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SERVING = [unit.name for unit in UNITS if "backup" not in unit.name]
EXAMPLES: dict[str, type[FileSettings]] = {
    "api.toml": ApiSettings,
    "audit.toml": ApiSettings,
    "gateway.toml": GatewaySettings,
    "worker.toml": WorkerSettings,
}
# the last: production has an account for it
PLACES = {"redis", "gateway", "node", "host", "tls_cert_file", "tls_key_file", "audit_keeper"}
LOCKS = sorted((DEPLOY / "lock").glob("*.txt"))
# score times ten, as `systemd-analyze security` computes it
EXPOSURE_MAX = 15
EXPOSURE_MAX_OF_WORKER = 32  # root with access to disks: see ADR 42


@pytest.fixture
def installed_units(tmp_path: Path) -> dict[str, Path]:
    """The units with this checkout's paths instead of a node's: verify requires existing programs."""
    programs = Path(sys.executable).parent
    for unit in [*UNITS, DEPLOY / "systemd" / "vps-snapshots-api.socket"]:
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/vps-snapshots/bin", str(programs)))
    return {unit.name: tmp_path / unit.name for unit in UNITS}


@pytest.fixture
def no_settings_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


def unit_options(name: str) -> configparser.ConfigParser:
    # a key may occur several times in a unit, and `%` is systemd's own
    options = configparser.ConfigParser(strict=False, interpolation=None)
    options.read(DEPLOY / "systemd" / name)
    return options


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_systemd_accepts_each_unit(name: str, installed_units: dict[str, Path]) -> None:
    needs("systemd-analyze")
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed_units[name]], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("name", [unit.name for unit in UNITS])
def test_each_unit_is_shut_in(name: str, installed_units: dict[str, Path]) -> None:
    needs("systemd-analyze")
    most = EXPOSURE_MAX_OF_WORKER if "worker" in name else EXPOSURE_MAX
    command = ["systemd-analyze", "security", "--no-pager", "--offline=yes", f"--threshold={most}"]
    said = subprocess.run([*command, installed_units[name]], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout[-200:]


def test_the_worker_weighs_less_than_the_guests_beside_it() -> None:
    """libvirt's guests are in machine.slice, with systemd's default weight of 100. A unit in another slice than the
    root has a weight only relative to its siblings there."""
    service = unit_options("vps-snapshots-worker.service")["Service"]
    assert service["Slice"] == "-.slice"
    assert 0 < int(service["CPUWeight"]) <= 50
    assert 0 < int(service["IOWeight"]) <= 50


def test_the_socket_opens_addresses_that_do_not_exist_yet() -> None:
    """sockets.target is reached before DHCP. The front end would start without the socket, at the address of its
    settings."""
    assert unit_options("vps-snapshots-api.socket")["Socket"]["FreeBind"] == "yes"


def test_at_a_shutdown_the_worker_drains_before_libvirt_stops_the_guests() -> None:
    """The stop order is the reverse of `After=`."""
    text = (DEPLOY / "systemd" / "vps-snapshots-worker.service").read_text()  # `After=` is there twice
    after = {unit for line in re.findall(r"^After=(.*)$", text, re.MULTILINE) for unit in line.split()}
    assert after >= {"libvirt-guests.service", "virt-guest-shutdown.target", "libvirtd.service", "virtqemud.service"}


def test_libvirtd_writes_its_messages_in_english() -> None:
    """Without an empty LANGUAGE, gettext takes its language from there also in the locale C.UTF-8."""
    assert unit_options("libvirtd.conf")["Service"]["Environment"] == "LC_ALL=C.UTF-8 LANGUAGE="


@pytest.mark.parametrize("unit", ["redis-server", "redis-sentinel"])
def test_redis_is_started_until_its_address_exists(unit: str, tmp_path: Path) -> None:
    needs("systemd-analyze")
    service = tmp_path / f"{unit}.service"
    service.write_text("[Unit]\nAfter=network.target\n[Service]\nType=notify\nExecStart=/bin/true\nRestart=always\n")
    drop_in = tmp_path / f"{unit}.service.d" / "vps-snapshots.conf"
    drop_in.parent.mkdir()
    shutil.copy(DEPLOY / "redis" / "at-boot.conf", drop_in)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", service], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    options = configparser.ConfigParser()
    options.read(drop_in)
    assert {"network-online.target"} == {options["Unit"]["After"], options["Unit"]["Wants"]}
    # systemd's default limit is five starts within ten seconds
    assert options["Unit"]["StartLimitIntervalSec"] == "0"
    assert options["Service"]["Restart"] == "always"


def test_systemd_accepts_the_socket(installed_units: dict[str, Path]) -> None:
    needs("systemd-analyze")
    socket = installed_units["vps-snapshots-api.service"].with_suffix(".socket")
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", socket], capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVING)
def test_systemd_restarts_a_program_that_hangs(name: str) -> None:
    service = unit_options(name)["Service"]
    assert (service["Type"], service["Restart"]) == ("notify", "always")
    # the program itself notices first, and prints where it hangs
    assert float(service["WatchdogSec"]) >= 2 * HUNG_SECONDS


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("no_settings_in_environment")
def test_the_programs_take_their_example_settings(name: str, tmp_path: Path) -> None:
    load(EXAMPLES[name], copied(name, tmp_path, mode=0o640))


def copied(name: str, folder: Path, *, mode: int) -> Path:
    file = folder / name
    file.write_text((DEPLOY / "examples" / name).read_text())
    file.chmod(mode)
    return file


@pytest.mark.usefixtures("no_settings_in_environment")
def test_a_password_that_every_user_can_read_is_refused(tmp_path: Path) -> None:
    file = copied("api.toml", tmp_path, mode=0o644)
    with pytest.raises(ConfigurationError) as refused:
        load(ApiSettings, file)
    assert str(refused.value) == f"{file}: every user can read redis.password: chmod o-r {file}"


@pytest.mark.usefixtures("no_settings_in_environment")
def test_a_file_without_a_password_may_be_read(tmp_path: Path) -> None:
    load(WorkerSettings, copied("worker.toml", tmp_path, mode=0o644))


@pytest.mark.usefixtures("no_settings_in_environment")
def test_a_password_in_a_url_is_one(tmp_path: Path) -> None:
    file = tmp_path / "api.toml"
    file.write_text('webhook_proxy = "http://10.20.0.9:3128"')
    file.chmod(0o644)
    load(ApiSettings, file)
    file.write_text('webhook_proxy = "http://snapshots:secret@10.20.0.9:3128"')
    with pytest.raises(ConfigurationError) as refused:
        load(ApiSettings, file)
    assert str(refused.value) == f"{file}: every user can read webhook_proxy: chmod o-r {file}"


def test_no_example_recommends_a_password_in_the_environment() -> None:
    """Every user can read the variables of a unit, with `systemctl show`."""
    for name in EXAMPLES:
        assert "__PASSWORD" not in (DEPLOY / "examples" / name).read_text()


def test_passwords_are_made_in_the_file_itself(tmp_path: Path) -> None:
    """Every user can see a password in a program's arguments."""
    file = tmp_path / "users.acl"
    file.write_text((DEPLOY / "redis" / "users.acl").read_text())
    file.chmod(0o640)
    for _ in range(2):  # the second time, nothing is left to do
        subprocess.run([sys.executable, DEPLOY / "redis" / "passwords.py", file], check=True)
        made = re.findall(r">([0-9a-f]{64})\b", file.read_text())
        assert len(made) == len({*made}) == 6
        assert "-PASSWORD" not in file.read_text()
        assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.usefixtures("no_settings_in_environment")
def test_the_examples_show_the_defaults_but_for_where_things_are(name: str) -> None:
    shown = tomllib.loads((DEPLOY / "examples" / name).read_text())
    defaults = EXAMPLES[name]().model_dump(mode="json")
    assert {key: defaults[key] for key in shown if key not in PLACES} == {
        key: value for key, value in shown.items() if key not in PLACES
    }


def test_the_worker_may_take_rights_from_qemu_img() -> None:
    allowed = unit_options("vps-snapshots-worker.service")["Service"]["CapabilityBoundingSet"].split()
    assert {"CAP_SETPCAP", "CAP_DAC_OVERRIDE"} <= {*allowed}


def test_the_worker_may_do_what_makes_its_stops_short() -> None:
    """The tests do not apply the unit's limits of system calls."""
    service = unit_options("vps-snapshots-worker.service")["Service"]
    assert {"CAP_KILL", "CAP_SYS_PTRACE"} <= {*service["CapabilityBoundingSet"].split()}
    assert "pidfd_getfd" in service["SystemCallFilter"].split()


# Options of a unit that hide files of the host from the service or show others in their place (systemd.exec(5)).
HIDING = (
    *(
        "ProtectHome",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelModules",
        "InaccessiblePaths",
        "TemporaryFileSystem",
    ),
    *("BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage", "MountImages", "ExtensionImages"),
    "ExtensionDirectories",
)


def test_the_survey_knows_what_the_worker_cannot_see() -> None:
    needs_module("libvirt")
    from drivers.kvm import hidden  # noqa: PLC0415 - only where there is a libvirt

    service = unit_options("vps-snapshots-worker.service")["Service"]
    given = {f"{option}={service[option]}" for option in HIDING if option in service}
    assert given == {option.replace("=no", "=yes") for option in hidden.OPTIONS.values()}


def test_a_stop_gives_the_worker_the_time_to_drain() -> None:
    service = unit_options("vps-snapshots-worker.service")["Service"]
    drain = WorkerSettings.model_fields["drain_seconds"].default
    assert float(service["TimeoutStopSec"]) > drain + LAST_WORDS_SECONDS + SHUTDOWN_SECONDS
    assert service["KillMode"] == "mixed"  # SIGTERM must not reach its running qemu-img


def test_a_stop_gives_the_front_end_the_time_to_drain() -> None:
    service = unit_options("vps-snapshots-api.service")["Service"]
    assert float(service["TimeoutStopSec"]) > ApiSettings.model_fields["drain_seconds"].default + SHUTDOWN_SECONDS


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_locked_package_has_its_version_and_hashes_and_no_host(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not [line for line in text.splitlines() if line.startswith("-")]
    requirements = text.replace("\\\n", "").splitlines()
    assert [line for line in requirements if "==" not in line or "--hash=sha256:" not in line] == []
