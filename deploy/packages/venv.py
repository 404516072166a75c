"""Builds the venv of a package on any machine, as pip would on a machine of the release."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

from deploy.packages.lock import Entry
from deploy.packages.parts import HOME, PROJECT, Package, Release

LIBVIRT_MODULES = ("libvirt.py", "libvirt_qemu.py", "libvirtaio.py", "libvirtmod{abi}", "libvirtmod_qemu{abi}")
# pip's own records of how a package was installed, which differ by machine
NOT_KEPT = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")


def make(
    root: Path, package: Package, release: Release, *, entries: Iterable[Entry], wheel: Path, machine: str
) -> Path:
    """Create the venv below `root`, the file system of the package. Returns its folder of modules.

    Raises CalledProcessError if pip finds no fitting package.
    """
    home = root / HOME / package.side
    site = home / "lib" / f"python{release.python_minor}" / "site-packages"
    site.mkdir(parents=True)
    _install(site, release, entries, machine=machine)
    with zipfile.ZipFile(wheel) as ours:
        ours.extractall(site)
    for kept_by_pip in (path for name in NOT_KEPT for path in site.glob(f"*.dist-info/{name}")):
        kept_by_pip.unlink()
    shutil.rmtree(site / "bin", ignore_errors=True)  # scripts of other packages, with this machine's Python
    for file in (path for path in site.rglob("*") if path.is_file()):
        file.chmod(0o644)
    if package.has_libvirt:
        _link_libvirt(site, release, machine=machine)
    (home / "pyvenv.cfg").write_text(
        f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {release.python}\n"
    )
    bin_ = home / "bin"
    bin_.mkdir()
    (bin_ / "python").symlink_to(f"../../../../bin/python{release.python_minor}")
    for program in package.programs:
        _write_program(bin_ / program, f"/{HOME}/{package.side}/bin/python")
    return site


def _install(site: Path, release: Release, entries: Iterable[Entry], *, machine: str) -> None:
    lines = site.with_name("requirements.txt")
    lines.write_text("\n".join(entry.as_line for entry in entries))
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(release.glibc_minor, 4, -1)]
    fitting = [f"--platform={name}" for name in (*platforms, f"manylinux2014_{machine}", f"linux_{machine}")]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    what = ["--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes", f"--requirement={lines}"]
    where = [f"--target={site}", f"--python-version={release.python}", "--implementation=cp"]
    subprocess.run([*pip, *what, *where, *fitting], check=True)
    lines.unlink()


def _link_libvirt(site: Path, release: Release, *, machine: str) -> None:
    """Link Debian's python3-libvirt, which matches the node's libvirt. It is the only Python package of Debian that the
    worker sees."""
    abi = f".cpython-{release.python_minor.replace('.', '')}-{machine}-linux-gnu.so"
    system = "../" * 5  # from site-packages to /usr/lib
    for module in LIBVIRT_MODULES:
        name = module.format(abi=abi)
        (site / name).symlink_to(f"{system}python3/dist-packages/{name}")


def _write_program(file: Path, python: str) -> None:
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[file.name].partition(":")
    # -I: load no modules from the working directory or from folders in the environment
    file.write_text(f"#!{python} -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n")
    file.chmod(0o755)
