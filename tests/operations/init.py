"""`init.py FOLDER`: the first process of a machine. Mounts the machine's own folders, then acts as systemd: starts and
stops units from their files.

Reads one command of `systemctl` per connection of the socket FOLDER/init.sock, as JSON, and answers with an exit status
and a text. Isolation settings of units are not applied: other tests check them.
"""

import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

OWN = ("etc", "run", "var/lib", "var/log", "var/backups")
UNIT_FOLDERS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
LIMIT_SECONDS = 60.0
# Places the sockets where systemd does, then executes the program: LISTEN_PID is its own.
_ACTIVATE = """
import os, sys
count = int(sys.argv[1])
for place, fd in enumerate(map(int, sys.argv[2 : 2 + count])):
    os.dup2(fd, 3 + place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execv(sys.argv[2 + count], sys.argv[2 + count :])
"""


class UnitError(Exception):
    """The unit cannot be started; the text is what systemctl would print."""


Options = dict[str, list[str]]


def own_folders(folder: Path) -> None:
    """Mount the folder's `etc` over /etc and so on; existing files of Debian are copied or stay visible."""
    for name in OWN:
        (folder / name).mkdir(parents=True)
    (folder / "home").mkdir()
    (folder / "home" / "deploy").symlink_to(Path(__file__).parents[2] / "deploy")
    subprocess.run(["cp", "-a", "/etc/.", folder / "etc"], check=True)
    for name in ("redis", "vps-snapshots", "prometheus"):
        shutil.rmtree(folder / "etc" / name, ignore_errors=True)
    with (folder / "etc/hosts").open("a") as hosts:
        hosts.write((folder.parent / "hosts").read_text())
    (folder / "var/lib/dpkg").mkdir()
    subprocess.run(["mount", "--bind", "/var/lib/dpkg", folder / "var/lib/dpkg"], check=True)
    for name in OWN:
        subprocess.run(["mount", "--rbind", folder / name, f"/{name}"], check=True)
    # no test removes or installs a program of this machine
    subprocess.run(["mount", "--bind", "/usr/local/bin", "/usr/local/bin"], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/usr/local/bin"], check=True)
    for name in ("/run/programs", "/run/units", "/var/log/units"):
        Path(name).mkdir()


def options_of(unit: str) -> dict[str, Options]:
    """Sections of a unit's file and its drop-ins. As in systemd, an empty value clears earlier ones."""
    files = [folder / unit for folder in UNIT_FOLDERS if (folder / unit).exists()][:1]
    if not files:
        raise UnitError(f"Unit {unit} not found.")
    files += sorted((UNIT_FOLDERS[0] / f"{unit}.d").glob("*.conf"))
    sections: dict[str, Options] = defaultdict(lambda: defaultdict(list))
    for file in files:
        section = ""
        for line in file.read_text().replace("\\\n", " ").splitlines():
            if line.startswith("["):
                section = line.strip("[] ")
            elif "=" in line and line[0] not in "#;":
                key, _, value = line.partition("=")
                sections[section][key] = [*sections[section][key], value] if value else []
    return sections


class Init:
    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: dict[str, list[socket.socket]] = {}
        self._timers: set[str] = set()

    def systemctl(self, command: str, *words: str) -> str:
        now = "--now" in words
        units = [word if "." in word else f"{word}.service" for word in words if not word.startswith("-")]
        units.sort(key=lambda unit: not unit.endswith(".socket"))  # as systemd orders them
        act = {"start": self.start, "stop": self.stop, "restart": self.restart, "is-active": self.check}
        act["try-restart"] = self.try_restart
        if command in ("enable", "disable"):
            for unit in units:
                if command == "enable" and "Install" not in options_of(unit):
                    raise UnitError(f"The unit file {unit} has no installation config.")
                if now:
                    act["start" if command == "enable" else "stop"](unit)
        elif command in act:
            for unit in units:
                act[command](unit)
        elif command == "list-units":
            return "\n".join(sorted([*self._running, *self._sockets, *self._timers]))
        elif command != "daemon-reload":
            raise UnitError(f"Unknown command verb {command}.")
        return ""

    def start(self, unit: str) -> None:
        if self._is_active(unit):
            return
        options = options_of(unit)
        if unit.endswith(".timer"):
            options_of(unit.replace(".timer", ".service"))
            self._timers.add(unit)
        elif unit.endswith(".socket"):
            self._sockets[unit] = [_listening(address) for address in options["Socket"]["ListenStream"]]
        elif options["Service"]["Type"] == ["oneshot"]:
            code = self._spawn(unit, options["Service"], None).wait(LIMIT_SECONDS)
            if code:
                raise UnitError(f"Job for {unit} failed: exit status {code}.")
        else:
            self._start_notified(unit, options["Service"])

    def _start_notified(self, unit: str, options: Options) -> None:
        if options["Type"] != ["notify"]:
            raise UnitError(f"{unit}: only the types notify and oneshot are played here.")
        path = Path(f"/run/units/{unit}.notify")
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
            ear.bind(str(path))
            path.chmod(0o777)
            ear.settimeout(0.1)
            process = self._running[unit] = self._spawn(unit, options, path)
            for _ in range(int(LIMIT_SECONDS * 10)):
                try:
                    if b"READY=1" in ear.recv(4096):
                        return
                except TimeoutError:
                    if process.poll() is not None:
                        break
        self._running.pop(unit).kill()
        raise UnitError(f"Job for {unit} failed: exit status {process.poll()}.\n{Path(_log(unit)).read_text()[-3000:]}")

    def _spawn(self, unit: str, options: Options, notify: Path | None) -> subprocess.Popen[bytes]:
        credentials = Path(f"/run/units/{unit}.credentials")
        for given in options["LoadCredential"]:
            name, _, path = given.partition(":")
            credentials.mkdir(exist_ok=True)
            (credentials / name).unlink(missing_ok=True)
            try:
                (credentials / name).write_bytes(Path(path).read_bytes())
            except OSError as error:
                raise UnitError(f"{unit}: Failed to set up credentials: {error}") from error
            (credentials / name).chmod(0o400)
        for key, root in (("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")):
            for name in options[key]:
                Path(root, name).mkdir(exist_ok=True)
                Path(root, name).chmod(int((options[f"{key}Mode"] or ["0755"])[-1], 8))
        environment = self._environment | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
        for line in options["Environment"]:
            environment |= dict(pair.split("=", 1) for pair in shlex.split(line.replace("%d", str(credentials))))
        if notify:
            environment["NOTIFY_SOCKET"] = str(notify)
        (line,) = options["ExecStart"]
        command = shlex.split(line.replace("%d", str(credentials)))
        sockets = self._sockets.get(unit.replace(".service", ".socket"), [])
        fds = [one.fileno() for one in sockets]
        if fds:
            command = [sys.executable, "-c", _ACTIVATE, str(len(fds)), *map(str, fds), *command]
        before = ["setpriv", "--pdeathsig", "KILL"]
        for user in options["User"]:
            found = pwd.getpwnam(user)
            before += [f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--init-groups"]
            for name in options["RuntimeDirectory"]:
                os.chown(f"/run/{name}", found.pw_uid, found.pw_gid)
        with Path(_log(unit)).open("ab") as log:
            return subprocess.Popen(
                [*before, "--", *command],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                umask=int((options["UMask"] or ["0022"])[-1], 8),
            )

    def stop(self, unit: str) -> None:
        options_of(unit)
        for listening in self._sockets.pop(unit, []):
            listening.close()
        self._timers.discard(unit)
        if (process := self._running.pop(unit, None)) is None:
            return
        process.send_signal(signal.SIGTERM)
        if (code := process.wait(LIMIT_SECONDS)) not in (0, -signal.SIGTERM):
            raise UnitError(f"{unit} ended with exit status {code}.\n{Path(_log(unit)).read_text()[-3000:]}")

    def restart(self, unit: str) -> None:
        self.stop(unit)
        self.start(unit)

    def try_restart(self, unit: str) -> None:
        if self._is_active(unit):
            self.restart(unit)

    def check(self, unit: str) -> None:
        if not self._is_active(unit):
            raise UnitError("inactive")

    def _is_active(self, unit: str) -> bool:
        process = self._running.get(unit)
        return (process is not None and process.poll() is None) or unit in self._sockets or unit in self._timers


def _listening(address: str) -> socket.socket:
    match = re.fullmatch(r"(?:\[?([0-9a-f.:]+)\]?:)?(\d+)", address)
    if match is None:
        raise UnitError(f"ListenStream={address} is not played here.")
    family = socket.AF_INET6 if ":" in (match[1] or "") else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((match[1] or "0.0.0.0", int(match[2])))  # noqa: S104 - as systemd
    listening.listen(4096)
    return listening


def _log(unit: str) -> str:
    return f"/var/log/units/{unit.removesuffix('.service')}.log"


def main(folder: Path) -> None:
    own_folders(folder)
    init = Init(json.loads((folder / "environment.json").read_text()))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "init.sock"))
        server.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile("rw") as stream:
                try:
                    answer = [0, init.systemctl(*json.loads(stream.readline()))]
                except UnitError as error:
                    answer = [1, str(error)]
                stream.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
