"""`commands.py NAME ARGUMENTS...`: replacements for commands of the instructions that cannot run on these machines.

apt-get copies the files of a package to its paths; systemctl asks the machine's init; editor makes the test's changes
instead of a person; ssh runs a command on another machine. They refuse everything else. A program that a minimal Debian
lacks is found only once apt-get has installed its package.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SENTINEL_UNIT = """\
[Service]
Type=notify
ExecStart=/usr/bin/redis-server /etc/redis/sentinel.conf --sentinel --supervised systemd --daemonize no
User=redis
Group=redis
RuntimeDirectory=sentinel
UMask=007

[Install]
WantedBy=multi-user.target
"""
# as Debian's packages make them
FOLDERS = {
    "redis-server": ("/etc/redis", "/var/lib/redis"),
    "redis-sentinel": ("/etc/redis", "/var/lib/redis"),
    "prometheus": ("/etc/prometheus",),
}
UNITS = Path("/etc/systemd/system")
INSTALLED = Path("/run/installed")
PACKAGE_OF = {  # by program
    "curl": "curl",
    "openssl": "openssl",
    "python3": "python3",
    "age-keygen": "age",
    "promtool": "prometheus",
    "redis-cli": "redis-server",
}
_SECRET = re.compile(r"\{password of (\w+)\}")


def apt_get(*words: str) -> None:
    command, *names = [word for word in words if not word.startswith("-")]
    if command != "install":
        sys.exit(f"apt-get {command} is not played here")
    INSTALLED.mkdir(exist_ok=True)
    for name in names:
        if match := re.fullmatch(r"\./(vps-snapshots-\w+)_\*\.deb", name):
            _install_ours(match[1])
        elif name == "redis-sentinel":
            (UNITS / "redis-sentinel.service").write_text(SENTINEL_UNIT)
        elif subprocess.run(["dpkg-query", "-W", name], capture_output=True, check=False).returncode:
            sys.exit(
                f"E: Unable to locate package {name}: if Debian has it, deploy/setup.sh must install it for this test"
            )
        else:
            (INSTALLED / name).touch()
        for folder in FOLDERS.get(name, ()):
            Path(folder).mkdir(exist_ok=True, mode=0o750)
            if name.startswith("redis"):
                shutil.chown(folder, "redis", "redis")


def _install_ours(name: str) -> None:
    from deploy.packages.build import DEPLOY  # noqa: PLC0415 - only apt-get needs them
    from deploy.packages.parts import CHECKOUT_HOME, PACKAGES  # noqa: PLC0415

    (package,) = [package for package in PACKAGES if package.name == name]
    home = Path(sys.executable).parent
    for there, here in package.files.items():
        file = UNITS / Path(there).name if there.startswith("lib/systemd/") else Path("/", there)
        if not there.startswith(("etc/", "lib/systemd/system/vps-")) or (there.startswith("etc/") and file.exists()):
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text((DEPLOY / here).read_text().replace(CHECKOUT_HOME, f"{home}/"))
        file.chmod(0o600 if there.endswith(".toml") else 0o755 if here.endswith(".sh") else 0o644)
    for program in package.programs:
        link = Path("/run/programs", program)
        if not link.is_symlink():
            link.symlink_to(home / program)
    services = [Path(file).name for file in package.files if file.endswith(".service")]
    _systemctl("try-restart", *services)  # as the package does it at an upgrade


def systemctl(*words: str) -> None:
    if words[0] == "edit":
        unit = words[1] if "." in words[1] else f"{words[1]}.service"
        file = UNITS / f"{unit}.d" / "override.conf"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        editor(str(file))
        return
    code, text = _systemctl(*words)
    if text:
        sys.stdout.write(f"{text}\n")
    sys.exit(code)


def _systemctl(*words: str) -> tuple[int, str]:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(Path(os.environ["MACHINE"], "init.sock")))
        with client.makefile("rw") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            code, text = json.loads(stream.readline())
    return code, text


def editor(name: str) -> None:
    plan = Path(os.environ["MACHINE"], "edits.json")
    edits = json.loads(plan.read_text())
    if not edits.get(name):
        sys.exit(f"editor: the test has no changes for {name}")
    file = Path(name)
    text = file.read_text()
    for pattern, replacement in edits[name].pop(0):
        new = _SECRET.sub(lambda found: _password(found[1]), replacement)
        new = new.replace("AGE1...", _public_key()) if "AGE1..." in new else new
        text, count = re.subn(pattern, new.replace("\\", r"\\"), text, flags=re.MULTILINE)
        if count != 1:
            sys.exit(f"editor: {name} has {pattern!r} {count} times")
    file.write_text(text)  # the same file, so that mode and owner stay
    plan.write_text(json.dumps(edits))


def _password(account: str) -> str:
    from tests.operations.machine import password  # noqa: PLC0415 - machine.py knows the names of these commands

    return password(Path(os.environ["MACHINE"]), account)


def _public_key() -> str:
    key = Path(os.environ["MACHINE"]).parent / "vault" / "home" / "backup.key"
    (found,) = re.findall(r"^# public key: (age1\w+)$", key.read_text(), re.MULTILINE)
    return str(found)


def ssh(host: str, *words: str) -> None:
    from tests.operations.machine import entering  # noqa: PLC0415

    shared = Path(os.environ["MACHINE"]).parent
    environment = json.loads((shared / host / "environment.json").read_text())
    command = [*entering(shared, host, environment), "bash", "-c", " ".join(words)]
    sys.exit(subprocess.run(command, check=False).returncode)


def journalctl(option: str, unit: str) -> None:
    if option != "-u":
        sys.exit(f"journalctl {option} is not played here")
    sys.stdout.write(Path(f"/var/log/units/{unit}.log").read_text())


def _if_installed(program: str) -> Callable[..., None]:
    def run(*words: str) -> None:
        if not (INSTALLED / PACKAGE_OF[program]).exists():
            sys.exit(f"{program}: command not found: no block has installed {PACKAGE_OF[program]}")
        sys.exit(subprocess.run([f"/usr/bin/{program}", *words], check=False).returncode)

    return run


COMMANDS: dict[str, Callable[..., None]] = {program: _if_installed(program) for program in PACKAGE_OF} | {
    "apt-get": apt_get,
    "systemctl": systemctl,
    "editor": editor,
    "ssh": ssh,
    "journalctl": journalctl,
}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    COMMANDS[sys.argv[1]](*sys.argv[2:])
