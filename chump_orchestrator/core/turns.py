"""How long the turns of an event loop take: what is ready meanwhile waits for so long."""

from __future__ import annotations

from bisect import bisect_left

from chump_orchestrator.core.deferred import dataclass

BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Upper ends, included, of the classes that turns are counted in; one more is for the rest."""

SLOW_S = 0.01
"""Nothing on the loop is meant to take longer than this."""

LATELY_S = 600.0
"""For at least so long, and at most twice, the longest turn is remembered."""


@dataclass(frozen=True, slots=True)
class TurnsTaken:
    """The turns since the start: how many of each class, and their time altogether.

    `longest_s` is the longest one of late, see `LATELY_S`.
    """

    counts: tuple[int, ...]
    total_s: float
    longest_s: float

    @property
    def slow(self) -> int:
        """How many took longer than `SLOW_S`."""
        return sum(self.counts[BOUNDS_S.index(SLOW_S) + 1 :])


class LoopTurns:
    """Counts the turns of a loop; so cheap that each of them can be counted."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._total_s = 0.0
        self._longest_s = self._longest_before_s = 0.0
        self._began_s: float | None = None

    def count(self, took_s: float, now_s: float) -> None:
        """Count a turn that took so long and is over now, by a clock that never goes back."""
        self._look_at(now_s)
        self._counts[bisect_left(BOUNDS_S, took_s)] += 1
        self._total_s += took_s
        self._longest_s = max(self._longest_s, took_s)

    def taken(self, now_s: float) -> TurnsTaken | None:
        """Return what was counted; `None` where nobody counts."""
        if self._began_s is None:
            return None
        self._look_at(now_s)
        longest_s = max(self._longest_s, self._longest_before_s)
        return TurnsTaken(tuple(self._counts), self._total_s, longest_s)

    def _look_at(self, now_s: float) -> None:
        """Forget the longest turn of long ago."""
        if self._began_s is None:
            self._began_s = now_s
        elif now_s - self._began_s >= LATELY_S:
            is_recent = now_s - self._began_s < 2 * LATELY_S
            self._longest_before_s = self._longest_s if is_recent else 0.0
            self._longest_s = 0.0
            self._began_s = now_s
