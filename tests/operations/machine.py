"""A machine on which instructions are followed: a network namespace with its own versions of the folders that the
instructions change. systemd and apt are simulated (`init.py`, `commands.py`); all other programs are real. Needs
root."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.namespaces import network
from tests.operations.commands import COMMANDS

PROJECT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LIMIT_SECONDS = 120.0
Edits = Mapping[
    str, Sequence[Sequence[tuple[str, str]]]
]  # replacements in a file, for each time that an operator opens it
_ASKS = re.compile(r"\[y/N\]: $|input password: $|operator: $")


class NotDoneError(Exception):
    """A block ended with an error; the text is its output."""


class Machine:
    def __init__(self, shared: Path, name: str, inside: Sequence[str], addresses: Mapping[str, str]) -> None:
        """`addresses`: the real addresses, by the ones in the instructions."""
        self.name = name
        self.folder = shared / name
        self._shared = shared
        self._inside = inside
        self._addresses = addresses

    def start(self, environment: Mapping[str, str], edits: Edits) -> None:
        """Returns when its init accepts commands."""
        self.folder.mkdir()
        (self.folder / "edits.json").write_text(self.here(json.dumps(edits)))
        (self.folder / "environment.json").write_text(json.dumps(environment))
        self._environment = environment
        init = [sys.executable, str(HERE / "init.py"), str(self.folder)]
        with (self.folder / "init.log").open("wb") as log:
            self._init = subprocess.Popen(
                [
                    *self._inside,
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    "unshare",
                    "--mount",
                    "--propagation",
                    "private",
                    *init,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._init.stdout is not None
        if self._init.stdout.readline() != b"ready\n":
            raise NotDoneError((self.folder / "init.log").read_text())
        (self.folder / "pid").write_text(str(self._init.pid))

    def stop(self) -> None:
        if not hasattr(self, "_init"):
            return
        self._init.kill()
        self._init.wait()
        assert self._init.stdout is not None
        self._init.stdout.close()
        _end_all(self._inside[-1])

    def burn(self, edits: Edits) -> None:
        """Lose the machine with all of its files, and start a new one in its place."""
        self.stop()
        shutil.rmtree(self.folder)
        self.start(self._environment, edits)

    def file(self, path: str) -> Path:
        """The path, outside the machine, of a file in its /etc, /run, /var/lib, /var/log or working folder."""
        return self.folder / path.lstrip("/")

    def here(self, text: str) -> str:
        """Replace the example addresses with the real ones."""
        for example, address in self._addresses.items():
            text = text.replace(example, address)
        return text

    def follow(self, text: str) -> str:
        """Run a block as an operator would at a terminal. Returns the output. Raises NotDoneError."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *self._entering(), "bash", "-euo", "pipefail", "-c", self.here(text)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        watch = threading.Timer(LIMIT_SECONDS, process.kill)
        watch.start()
        try:
            shown = self._attend(ours, text)
            code = process.wait()
        finally:
            watch.cancel()
            os.close(ours)
        if code:
            raise NotDoneError(f"on {self.name}, exit status {code}:\n{text}\n--- shown:\n{shown}\n{self.logs()}")
        return shown

    def _attend(self, terminal: int, text: str) -> str:
        """Read until the end and answer each question: yes, or the password of the account that the block names."""
        accounts = iter(re.findall(r"--user (\w+) --askpass", text))
        shown, answered = "", 0
        while True:
            try:
                more = os.read(terminal, 65536)
            except OSError:  # the other side is closed
                return shown.replace("\r\n", "\n")
            if not more:
                return shown.replace("\r\n", "\n")
            shown += more.decode(errors="replace")
            if (asked := _ASKS.search(shown, answered)) is not None:
                answered = len(shown)
                account = next(accounts, "operator") if "password" in asked[0] else "operator"
                answer = "y" if asked[0].startswith("[") else password(self.folder, account)
                os.write(terminal, f"{answer}\n".encode())

    def edits_left(self) -> dict[str, object]:
        """The edits whose file no page has opened."""
        planned = json.loads((self.folder / "edits.json").read_text())
        return {file: changes for file, changes in planned.items() if changes}

    def _entering(self) -> list[str]:
        return entering(self._shared, self.name, self._environment)

    def logs(self) -> str:
        found = sorted((self.folder / "var/log/units").glob("*.log"))
        return "\n".join(f"--- {file.name}:\n{file.read_text()[-2000:]}" for file in found)


def entering(shared: Path, name: str, environment: Mapping[str, str]) -> list[str]:
    """The command that runs another one on the machine, in its working folder, as root after a login."""
    folder = shared / name
    variables = {
        "PATH": f"{shared}/commands:/run/programs:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder / "home"),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "COLUMNS": "200",
        "PAGER": "",
        "MACHINE": str(folder),
    }
    pid = (folder / "pid").read_text()
    return [
        *("nsenter", f"--target={pid}", "--mount", "--net", "--"),
        *(
            "env",
            "-i",
            f"--chdir={folder / 'home'}",
        ),  # inside the mounts: nsenter's own --wd is a folder outside
        *(f"{key}={value}" for key, value in (variables | dict(environment)).items()),
        *("/bin/sh", "-c", 'umask 077 && exec "$@"', "sh"),  # the strictest that root may have
    ]


def password(folder: Path, account: str) -> str:
    """The password of Redis that the operator has noted: of the machine in `folder`, or of the first with a Redis."""
    files = [folder / "etc/redis/users.acl", *sorted(folder.parent.glob("redis*/etc/redis/users.acl"))]
    text = next(file.read_text() for file in files if file.exists())
    (found,) = re.findall(rf"^user {account} on >(\S+)", text, re.MULTILINE)
    return str(found)


@contextmanager
def machines(
    folder: Path,
    names: Mapping[str, str],
    *,
    edits: Mapping[str, Edits],
    environment: Mapping[str, Mapping[str, str]],
) -> Iterator[dict[str, Machine]]:
    """Machines by name; each resolves all names. `names`: with the addresses or names in the pages."""
    commands = folder / "commands"
    commands.mkdir()
    for command in COMMANDS:
        (commands / command).write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "commands.py"} {command} "$@"\n')
        (commands / command).chmod(0o755)
    with network(len(names)) as net:
        real = dict(zip(names, net.hosts, strict=True))
        (folder / "hosts").write_text("".join(f"{host} {name} {names[name]}\n" for name, host in real.items()))
        addresses = {example: real[name] for name, example in names.items() if example[0].isdigit()}
        made = {name: Machine(folder, name, net.inside(place), addresses) for place, name in enumerate(names)}
        try:
            for name, machine in made.items():
                machine.start(environment.get(name, {}), edits.get(name, {}))
            yield made
        finally:
            for machine in made.values():
                machine.stop()


def _end_all(namespace: str) -> None:
    """Kill the remaining processes of a machine: nothing else is in its namespace."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        pids = subprocess.run(
            ["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False
        ).stdout.split()
        if not pids:
            break
        subprocess.run(["kill", "-KILL", *pids], check=False, stderr=subprocess.DEVNULL)
        time.sleep(0.05)
