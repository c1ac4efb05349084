"""A lookout by itself: nobody to ask about beside those who are watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from chump_orchestrator.core.outcome import PullRequest
from chump_orchestrator.core.records import Watch


class Nobody:
    """No request that was given up is asked about."""

    def next_s(self) -> float | None:
        return None

    def due(self, now_s: float, room: int) -> Sequence[Watch]:
        return ()

    def answered(self, answers: Mapping[str, PullRequest], asked_s: float) -> None:
        """There are none."""

    def unanswered(self, asked_s: float) -> None:
        """There are none."""


NOBODY = Nobody()
