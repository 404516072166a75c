"""The setup of a checkout, with programs in the place of Debian's that only note how they are called."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "deploy" / "setup.sh"
NOTES = """#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
for n in $(seq 500); do echo "a line that nobody wants to read"; done
"""
ANSWERS = {
    "dpkg-query": "#!/bin/sh\nexit 1\n",  # nothing is installed
    "id": "#!/bin/sh\necho 0\n",
    "getent": "#!/bin/sh\nexit 0\n",  # the account of libvirt is there
    "apt-get": NOTES,
    "env": NOTES,  # runs the installation
}


def packages(folder: Path, driver: str) -> tuple[set[str], list[str]]:
    """The Debian packages that would be installed, and what the setup says."""
    for name, text in ANSWERS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    done = subprocess.run(
        ["bash", SETUP, "packages"],
        env={
            "PATH": f"{folder}:{os.environ['PATH']}",
            "CALLS": str(calls),
            "VENV": str(folder / "venv"),
            "PYTHON": sys.executable,
            "DRIVER": driver,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    (installed,) = re.findall(r" install (redis-server .*)$", calls.read_text(), re.MULTILINE)
    return {*installed.split()}, done.stderr.splitlines()


@pytest.mark.parametrize("driver", ["fake", "kvm", ""])
def test_only_a_hypervisor_needs_qemu_and_libvirt_and_a_step_is_a_line(tmp_path: Path, driver: str) -> None:
    installed, said = packages(tmp_path, driver)
    of_hypervisor = {name for name in installed if re.search("qemu|libvirt|swtpm|ovmf", name)}
    assert "qemu-system-x86" in of_hypervisor if driver != "fake" else not of_hypervisor
    assert [line.partition(" Debian")[0] for line in said] == [
        "setup: updating",
        f"setup: installing {len(installed)}",
    ]
