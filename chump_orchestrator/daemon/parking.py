"""Backends whose program cannot be executed: kept from gaps for a while (behaviour A4, G5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from chump_orchestrator.core.brakes import FIRST_PAUSE, LONGEST_PAUSE
from chump_orchestrator.core.routing import Route

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Parked:
    reason: str
    until: datetime
    wait: timedelta

    def holds(self, now: datetime) -> bool:
        """Whether it still rests; one that seems to rest for longer than set does not.

        That comes from a clock that was put back.
        """
        return timedelta(0) < self.until - now <= self.wait


class ParkedBackends:
    """Parks a backend for 15 minutes, each further time for twice as long, up to four hours."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._parked: dict[str, _Parked] = {}

    def __bool__(self) -> bool:
        return bool(self._parked)

    def park(self, backend: str, reason: str, now: datetime) -> None:
        """Keep gaps away from `backend` for a while."""
        known = self._parked.get(backend)
        if known is not None and known.holds(now):
            return  # several were on their way when the first one failed
        wait = min(known.wait * 2, LONGEST_PAUSE) if known else FIRST_PAUSE
        self._parked[backend] = _Parked(reason, now + wait, wait)
        log.error("backend.parked", backend=backend, reason=reason, for_s=wait.total_seconds())
        self._tell("backend.parked", backend=backend, reason=reason, for_s=wait.total_seconds())

    def free(self, backend: str | None = None) -> None:
        """Forget that `backend`, or with `None` any of them, was parked."""
        if backend is None:
            self._parked.clear()
        else:
            self._parked.pop(backend, None)

    def first_usable(self, candidates: Iterable[Route], now: datetime) -> Route | None:
        """Return the first candidate whose backend is not parked, or `None`."""
        for candidate in candidates:
            parked = self._parked.get(candidate.backend)
            if parked is None or not parked.holds(now):
                return candidate
        return None

    def ends(self, now: datetime) -> list[datetime]:
        """Return when each of them may be tried again."""
        return [parked.until for parked in self._parked.values() if parked.holds(now)]

    def why(self, candidates: Iterable[Route]) -> str:
        """Say why these candidates cannot be used; empty for those that can."""
        told = {
            candidate.backend: f"backend {candidate.backend} is parked until"
            f" {parked.until:%H:%M:%SZ}: {parked.reason}"
            for candidate in candidates
            if (parked := self._parked.get(candidate.backend)) is not None
        }
        return "; ".join(told.values())
