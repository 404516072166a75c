"""Chains of backups: a full one and the incrementals after it, with what the disks held at the moment of each."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.backups.tool import FIRST, Run, Tool

Truth = dict[str, str]  # digests by the disks' file names


@dataclass(frozen=True, kw_only=True)
class Point:
    checkpoint: str | None  # up to which it is restored; None: only as the newest of its chain
    truths: tuple[Truth, ...]  # two where a job ran beside it: the disks before and after that


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

        It would write that over the last incremental of a running one, and say nothing.
        """
        return not self.over and [point.checkpoint for point in self.points] in ([FIRST], [FIRST, None])

    def add(self, run: Run, truths: tuple[Truth, ...]) -> None:
        """What the run, which went well, has saved."""
        taken = [point.checkpoint for point in self.points]
        if run.offline:
            self.points = [point for point in self.points if point.checkpoint is not None]
            self.points.append(Point(checkpoint=None, truths=truths))
            self.over = not taken  # a copy, which nothing can follow
        else:
            if None in taken:  # what it saved is now part of the first point as the tool restores that
                self.points.clear()
            self.points.append(Point(checkpoint=self._newest_checkpoint(), truths=truths))
        self.excused = False

    async def newest_is_right(self, tool: Tool) -> bool:
        return await tool.restored(self.folder, until=None) in self.points[-1].truths

    async def wrong_points(self, tool: Tool) -> list[str]:
        """Those that can be restored one by one, and are not what the disks held."""
        named = [(point.checkpoint, point.truths) for point in self.points if point.checkpoint]
        return [name for name, truths in named if await tool.restored(self.folder, until=name) not in truths]

    def _newest_checkpoint(self) -> str:
        names: list[str] = json.loads((self.folder / f"{self.domain}.cpt").read_text())
        return names[-1]
