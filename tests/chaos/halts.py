"""Stops the worker, or one of its qemu-img processes, at a given moment of a job until it is killed.

The campaign writes a file to request it; the worker of `tests.chaos.stage`, and a script in front of qemu-img, answer
with another file.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

# Every other change starts with a delay, so that a kill can come just before it. A requested refusal makes the named
# change fail once. A stopped process can be killed, and the processes that it started die with it.
_SHIM = """#!/bin/sh
stand_still() {{ echo "$$" >"{halted}.new"; mv "{halted}.new" "{halted}"; kill -STOP $$; }}
if [ -s "{child}" ] && read -r moment seconds pattern <"{child}"; then
    case " $* " in *" $pattern"*)
        if mv "{child}" "{child}.$$" 2>/dev/null; then
            case $moment in
            before) stand_still ;;
            during)
                setpriv --pdeathsig KILL -- {real} "$@" &
                sleep "$seconds"; kill -STOP $! 2>/dev/null; stand_still ;;
            after) {real} "$@"; stand_still ;;
            esac
        fi ;;
    esac
fi
case "$1.$$" in snapshot.*[02468]) sleep 0.15 ;; esac
if [ -s "{refusal}" ]; then
    read -r action disk <"{refusal}"
    open="$*" && open="${{open##*/proc/self/fd/}}" && disks="$(readlink "/proc/$$/fd/${{open%%\\"*}}")"
    case " $* $disks " in *" $action "*"$disk"*) rm -f "{refusal}"; echo "refused by the campaign" >&2; exit 1 ;; esac
fi
exec {real} "$@"
"""


class Moment(StrEnum):
    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, kw_only=True)
class Halt:
    """A moment of a step. `child`: stop not the worker but its first qemu-img with `pattern` in its command."""

    kind: str
    step: str
    moment: Moment
    seconds: float  # from the start of the change to "during"
    child: bool = False
    pattern: str = ""


class Halts:
    def __init__(self, folder: Path) -> None:
        self._asked = folder / "halt"
        self._child = folder / "child"
        self._halted = folder / "halted"
        self._refusal = folder / "refusal"
        self._programs = folder / "bin"

    def put_in_front(self) -> Path:
        """Write a qemu-img that obeys the files. Returns its folder."""
        self._programs.mkdir()
        shim = self._programs / "qemu-img"
        places = {"child": self._child, "halted": self._halted, "refusal": self._refusal}
        shim.write_text(_SHIM.format(**places, real=shutil.which("qemu-img")))
        shim.chmod(0o755)
        return self._programs

    def ask(self, halt: Halt) -> None:
        self._write(self._asked, json.dumps(asdict(halt)))

    def asked(self) -> Halt | None:
        try:
            asked = json.loads(self._asked.read_text())
        except FileNotFoundError:
            return None
        return Halt(**asked | {"moment": Moment(asked["moment"])})

    def arm_child(self, halt: Halt) -> None:
        self._asked.unlink()
        self._write(self._child, f"{halt.moment} {halt.seconds:.3f} {halt.pattern}\n")

    def stand_still(self) -> None:
        self._asked.unlink(missing_ok=True)
        self._write(self._halted, "")

    def reached(self) -> list[int] | None:
        """The PIDs of the stopped child; empty if the worker itself stopped. None: nothing has stopped yet."""
        try:
            return [int(pid) for pid in self._halted.read_text().split()]
        except FileNotFoundError:
            return None

    async def have_stopped(self) -> bool:
        """Whether the worker, or its child, has stopped."""
        return self.reached() is not None

    def refuse(self, action: str, disk: Path) -> None:
        """Make the next such change of that disk fail, without a kill."""
        self._refusal.write_text(f"{action} {disk.name}")

    def hang(self, action: str) -> None:
        """Stop the next such change, without a kill."""
        self._write(self._child, f"{Moment.BEFORE} 0 {action}\n")

    def forget(self) -> None:
        for path in (self._asked, self._child, self._halted, self._refusal):
            path.unlink(missing_ok=True)

    def _write(self, path: Path, text: str) -> None:
        fresh = path.with_name(f"{path.name}.fresh")
        fresh.write_text(text)
        fresh.replace(path)
