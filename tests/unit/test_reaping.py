"""Running a command below a process that reaps its orphans."""

import subprocess
import sys

ORPHAN = r"""
import os, sys, time
reading, writing = os.pipe()
if os.fork() == 0:
    parent = os.getpid()
    if os.fork() == 0:  # an orphan once its parent has ended
        while os.getppid() == parent:
            time.sleep(0.01)
        print(os.getppid(), flush=True)
        os._exit(0)
    os._exit(0)
os.close(writing)
os.wait()
os.read(reading, 1)  # until the orphan has ended
sys.exit(7)
"""


def test_an_orphan_is_adopted_and_the_status_passed_on() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.lab.reaping", sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE
    ) as reaping:
        assert reaping.stdout
        adopted_by = int(reaping.stdout.readline())
        assert (adopted_by, reaping.wait()) == (reaping.pid, 7)


def test_sigterm_is_passed_on() -> None:
    waits = "import os, signal; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    ended = subprocess.run([sys.executable, "-m", "deploy.lab.reaping", sys.executable, "-c", waits], check=False)
    assert ended.returncode == 128 + 15
