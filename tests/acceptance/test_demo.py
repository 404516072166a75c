"""The demo's proof runs and passes."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import needs


def test_the_demo_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for program in ("redis-server", "qemu-system-x86_64", "qemu-img", "setpriv"):
        needs(program)
    played = subprocess.run(
        [sys.executable, "-m", "deploy.demo.demo"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert played.returncode == 0, played.stdout + played.stderr
    assert "✓ the guest's console: READY vda=2:A vdb=2:A" in played.stdout
    assert "✗" not in played.stdout
    assert list(tmp_path.iterdir()) == []
