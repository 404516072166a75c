"""Backup chains: a full backup and its incremental ones, with the content of the disks at the time of each."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.backups.tool import FIRST, Run, Tool

Truth = dict[str, str]  # digests by file name of the disk


@dataclass(frozen=True, kw_only=True)
class Point:
    copy: Path  # a copy of the chain at that time
    truths: tuple[Truth, ...]  # two if a job ran beside it: the disks before and after the job

    async def is_right(self, tool: Tool) -> bool:
        return await tool.restored(self.copy) in self.truths


@dataclass(kw_only=True)
class Chain:
    domain: str
    folder: Path
    points: list[Point] = field(default_factory=list)
    over: bool = False  # nothing is added: the tool failed or made a copy
    excused: bool = False  # since the last point, something happened after which the tool may refuse

    @property
    def takes_offline(self) -> bool:
        """Whether the tool (1.9) may make an incremental backup of a domain that is off.

        It silently overwrites the last incremental backup of the running domain.
        """
        return not self.over and self._checkpoints() == [FIRST]

    def add(self, run: Run, truths: tuple[Truth, ...]) -> Point:
        """Record what a successful run saved."""
        copy = self.folder.with_name(f"{self.folder.name}.{len(self.points)}")
        shutil.copytree(self.folder, copy)
        point = Point(copy=copy, truths=truths)
        self.points.append(point)
        self.over = run.offline and not self._checkpoints()  # a copy, on which no incremental backup can be based
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
