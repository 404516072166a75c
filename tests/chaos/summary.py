"""The results of a campaign, for a person."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

SETTLED_SECONDS = 10.0  # the promise on an idle machine; a busy one does not fail because of it


@dataclass(kw_only=True)
class Summary:
    operations: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    moments_wanted: int = 0  # exact moments
    moments_hit: int = 0
    settle_seconds: list[float] = field(default_factory=list)
    claims: Counter[str] = field(default_factory=Counter)  # of the hostile node, by call and result
    violations: list[str] = field(default_factory=list)

    @property
    def killed(self) -> int:
        return self.kills.total()

    def text(self) -> str:
        times = sorted(self.settle_seconds) or [0.0]
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, len(times) * 99 // 100)]
        late = sum(seconds > SETTLED_SECONDS for seconds in times)
        rows = [
            f"operations: {_counted(self.operations.items())}",
            f"kills by target: {_counted(self.kills.items())}; {self.killed} in total",
            f"kills by the step in the journal: {_counted(self.steps.items())}",
            f"time to settle after the restart: p50 {p50:.2f} s, p99 {p99:.2f} s, longest {times[-1]:.2f} s; "
            f"{late} of {len(times)} later than {SETTLED_SECONDS:.0f} s",
            f"claims of the hostile node: {_counted(self.claims.items())}; {self.claims.total()} in total",
            f"violations: {len(self.violations)}",
        ]
        if self.moments_wanted:
            rows.insert(3, f"exact moments of steps: {self.moments_hit} hit of {self.moments_wanted}")
        return "\n".join([*rows, *(f"  {violation}" for violation in self.violations)])


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts, key=lambda item: -item[1]))
