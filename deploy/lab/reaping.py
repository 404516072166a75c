"""Run a command, and reap at once every process that it leaves behind: `python -m deploy.lab.reaping COMMAND…`

The process that started libvirt's QEMU has ended, so the process that adopts orphans must reap QEMU, and libvirt
waits for that whenever it stops a guest. systemd reaps in microseconds. The first process of a container may check for
ended processes only every second or two, which delays each power cut by that time.
"""

import ctypes
import os
import signal
import subprocess
import sys

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def run(command: list[str]) -> int:
    """Run the command and return its exit status, or 128 + N if signal N ended it.

    SIGTERM is passed on to the command. Raises OSError if the command does not start.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    command_process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(command_process.pid, signal.SIGTERM))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    while True:
        pid, status = os.wait()
        if pid == command_process.pid:
            return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
