"""Chains of backups: a full one and the incrementals after it, with what the disks held at the moment of each."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.backups.tool import FIRST, Run, Tool

Truth = dict[str, str]  # digests by the disks' file names


@dataclass(frozen=True, kw_only=True)
class Point:
    copy: Path  # of the chain as it was then, carried away
    truths: tuple[Truth, ...]  # two where a job ran beside it: the disks before and after that

    async def is_right(self, tool: Tool) -> bool:
        return await tool.restored(self.copy) in self.truths


@dataclass(kw_only=True)
class Chain:
    domain: str
    folder: Path
    points: list[Point] = field(default_factory=list)
    over: bool = False  # nothing is added any more: the tool has failed or made a copy
    excused: bool = False  # since the last point something has happened after which the tool may refuse

    @property
    def takes_offline(self) -> bool:
        """Whether the tool (1.9) may be asked for an incremental of a domain that is off.

        It writes that over the last incremental of a running one, and says nothing.
        """
        return not self.over and self._checkpoints() == [FIRST]

    def add(self, run: Run, truths: tuple[Truth, ...]) -> Point:
        """What the run, which went well, has saved."""
        copy = self.folder.with_name(f"{self.folder.name}.{len(self.points)}")
        shutil.copytree(self.folder, copy)
        point = Point(copy=copy, truths=truths)
        self.points.append(point)
        self.over = run.offline and not self._checkpoints()  # a copy, which nothing can follow
        self.excused = False
        return point

    def remove(self) -> None:
        for folder in (self.folder, *(point.copy for point in self.points)):
            shutil.rmtree(folder, ignore_errors=True)

    def _checkpoints(self) -> list[str]:
        try:
            names: list[str] = json.loads((self.folder / f"{self.domain}.cpt").read_text())
        except FileNotFoundError:
            return []
        return names
