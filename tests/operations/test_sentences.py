"""Commands in the sentences and tables of the pages for providers. Each is run, or `NOT_RUN` gives the reason.

Not covered: single words, such as `df`, and commands that begin with `vps-snapshots`, which test_cli_docs.py checks."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from api.cli.main import app
from tests.conftest import RedisServer, needs
from tests.integration.cli import commands
from tests.operations.pages import FILES, PROJECT, text_of, without_blocks

_SPAN = re.compile(r"`([^`]+)`")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S+")
_MAY_BE_COMMAND = re.compile(r"[a-z./][^ ]* (?!= )")
COMMANDS = commands(typer.main.get_command(app))
GROUPS = {path[0] for path in COMMANDS if path}
MAKEFILE = (PROJECT / "Makefile").read_text()
UNITS = {file.name for file in (PROJECT / "deploy" / "systemd").glob("vps-snapshots-*")}
UNITS_OF_DEBIAN = {"libvirtd.service", "redis-server.service"}
NOT_RUN = {
    ".venv/bin/python -m deploy.man FOLDER vps-snapshots": "tests/unit/test_man.py calls it",
    "acl load": "a block of the same page",
    "apt-get full-upgrade ./vps-snapshots-*~deb13_*.deb": "no test upgrades Debian",
    "apt-get update": "has nothing that could be wrong",
    "apt-get purge": "tests/packages/inside.sh purges with dpkg",
    "cat /etc/debian_version": "has nothing that could be wrong",
    "chmod 600": "part of a command",
    "chown root FOLDER": "has nothing that could be wrong",
    "chronyc tracking": "a machine has chrony or another program for NTP",
    "cp -a": "part of a command",
    "credential list": "tests/integration/test_gateway_command_line.py",
    "curl http://HOST:PORT/healthz": "tests/integration makes this call",
    "curl http://HOST:PORT/metrics": "tests/integration makes this call",
    "date -u": "has nothing that could be wrong",
    "deploy/install.sh front-end": "tests/packages/inside.sh",
    "deploy/install.sh ROLE": "tests/packages/inside.sh runs it for a front end",
    "deploy/install.sh front-end tracing": "downloads packages; no test installs this extra",
    "deploy/install.sh node tracing": "downloads packages; no test installs this extra",
    "man vps-snapshots": "tests/unit/test_man.py makes the pages; man is not needed for the tests",
    "man vps-snapshots-snapshot-create": "tests/unit/test_man.py makes the pages; man is not needed for the tests",
    "promtool test rules deploy/prometheus/rules_test.yml": "tests/unit/test_monitoring.py",
    "qemu-img rebase": "the sentence warns of it",
    "rsync -a": "part of a command",
    "sentinel failover vps-snapshots": "tests/chaos/failovers.py kills the primary instead",
    "ssh-keygen -R HOST": "needs a file of known hosts",
    "ssh -L 8080:127.0.0.1:8080 HOST": "needs a server of ssh",
}
NO_COMMANDS = {
    "bitmap … not found in backing chain",
    "cannot migrate domain with 1 snapshots",
    "compat: 0.10",
    "journal.sqlite has version 3; this program supports up to 2",
    "journal.sqlite: a job at the step NAME was written by a newer version or is damaged",
    "max by (node)",
    "maxmemory 1gb",
    "min-replicas-max-lag 10",
    "min-replicas-to-write 1",
    'restrict,command="tar -C /var/lib/vps-snapshots-backup -c ."',
    "server 12345",
    "snapshot 801",
    "some avg10",
    "tls-auth-clients yes",
    "user default off",
    "user default off ~* &* +@all",
}
DOMAIN = """\
<node><domain type='test'><name>DOMAIN</name><memory>8192</memory><vcpu>2</vcpu><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/FILE'/><target dev='vda' bus='virtio'/>
</disk></devices></domain></node>
"""
# what a command ends with that libvirt's test driver was asked for, and cannot do
_OF_THE_DRIVER = re.compile(
    r"not supported by the connection driver|unsupported flags \(|no domain checkpoint with matching name 'NAME'"
    r"|no domain snapshot with matching name 'vps-job'"
    r"|no connection driver available for URI 'DESTINATION'"
)


def spans() -> Iterator[str]:
    """Words that may be a command, without a leading assignment of a variable."""
    for page in FILES:
        for span in _SPAN.findall(without_blocks(page)):
            words = span.split()
            while words and _ASSIGNMENT.fullmatch(words[0]):
                del words[0]
            line = " ".join(words)
            if _MAY_BE_COMMAND.match(line) and not line.startswith("vps-snapshots"):
                # the page of the command line names its commands without the program
                yield f"vps-snapshots {line}" if page == "cli" and words[0] in GROUPS else line


def ended_well(*words: str, folder: Path) -> str:
    said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    return said.stdout


def make(line: str, _folder: Path) -> None:
    target = line.split()[1]
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), f"no target {target}"
    for name in re.findall(r" ([A-Z]+)=", line):
        assert re.search(rf"\b{name}\b", MAKEFILE), f"no variable {name}"


def systemctl(line: str, _folder: Path) -> None:
    verb, *words = line.split()[1:]
    assert verb in {"start", "stop", "restart", "status", "show", "enable", "edit"}
    for word in words:
        unit = word if "." in word else f"{word}.service"
        assert word in ("--now", "UNIT") or unit in UNITS | UNITS_OF_DEBIAN, f"no unit {unit}"


def journalctl(line: str, _folder: Path) -> None:
    found = re.fullmatch(r"journalctl -u (\S+)(?: \| grep \S+)?", line)
    assert found
    assert f"{found[1]}.service" in UNITS


def qemu(line: str, folder: Path) -> None:
    needs("qemu-img")
    ended_well("qemu-img", "create", "-q", "-f", "qcow2", "FILE", "1M", folder=folder)
    ended_well("qemu-img", "snapshot", "-c", "vps-safety-JOB", "FILE", folder=folder)
    words = shlex.split(line)
    if words[:3] == ["qemu-img", "snapshot", "-c"]:
        words.append("TAG")
    ended_well(*words, *(["FILE"] if "FILE" not in words else []), folder=folder)


def qemu_io(line: str, folder: Path) -> None:
    """It kills itself, so that QEMU does not write the bitmap back and leaves it marked as in use."""
    needs("qemu-io")
    ended_well("qemu-img", "create", "-q", "-f", "qcow2", "FILE", "1M", folder=folder)
    ended_well("qemu-img", "bitmap", "--add", "FILE", "backup", folder=folder)
    assert "in-use" not in ended_well("qemu-img", "info", "FILE", folder=folder)
    assert subprocess.run(shlex.split(line), cwd=folder, check=False).returncode == -signal.SIGKILL
    assert "in-use" in ended_well("qemu-img", "info", "FILE", folder=folder)


def virsh(line: str, folder: Path) -> None:
    needs("virsh")
    (folder / "node.xml").write_text(DOMAIN)
    # one call for both: what the driver has is gone with the connection
    words = shlex.split(line)[1:]
    if "DOMAIN" not in words:
        words += ["DOMAIN", *REST.get(words[0], ())]
    script = f"snapshot-create-as DOMAIN TAG; {shlex.join(words)}\n"
    said = subprocess.run(
        ["virsh", "--connect", f"test://{folder}/node.xml", script], capture_output=True, text=True, check=False
    )
    assert "snapshot TAG created" in said.stdout
    assert said.returncode == 0 or _OF_THE_DRIVER.search(said.stderr), said.stderr


REST = {  # what follows the domain, for commands of which a sentence names only the beginning
    "blockjob": ["vda"],
    "blockpull": ["vda"],
    "setvcpus": ["1"],
    "snapshot-revert": ["TAG"],
}


def redis(line: str, folder: Path) -> None:
    """`cli` is a function that the page defines."""
    assert "\ncli() { redis-cli -s /run/redis/redis-server.sock --user operator" in text_of("runbook")
    words = shlex.split(line)[1:]
    if words == ["config", "set"]:
        words += ["maxmemory", "1gb"]
    with running(folder) as server:
        cli = ["redis-cli", "-e", "-s", str(server.socket)]
        ended_well(*cli, "hset", "KEY", "field", "value", folder=folder)
        ended_well(*cli, *words, folder=folder)


@contextmanager
def running(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def ours(line: str, _folder: Path) -> None:
    words = [word for word in line.split()[1:] if not word.isupper()]
    path = max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len, default=None)
    assert path is not None, "no such command"
    options = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def python(line: str, _folder: Path) -> None:
    ended_well(sys.executable, *line.split()[1:], folder=PROJECT)


HOW: dict[str, Callable[[str, Path], None]] = {
    "make": make,
    "systemctl": systemctl,
    "journalctl": journalctl,
    "qemu-img": qemu,
    "qemu-io": qemu_io,
    "virsh": virsh,
    "cli": redis,
    "vps-snapshots": ours,
    ".venv/bin/python": python,
}


@pytest.mark.parametrize("line", sorted({*spans()} - {*NOT_RUN} - NO_COMMANDS))
def test_a_command_in_a_sentence_works(line: str, tmp_path: Path) -> None:
    program = line.split(maxsplit=1)[0]
    assert program in HOW, "nothing runs it, and neither NOT_RUN nor NO_COMMANDS has it"
    HOW[program](line, tmp_path)


def test_each_exception_is_needed() -> None:
    assert {*NOT_RUN, *NO_COMMANDS} - {*spans()} == set()
