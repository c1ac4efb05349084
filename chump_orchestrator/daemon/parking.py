"""Backends that cannot be used: kept from gaps for a while (behaviour A4, G5, X4)."""

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
    is_limit: bool

    @property
    def told_until(self) -> str:
        """When it may be used again; with the day where that may be another one."""
        return f"{self.until:%Y-%m-%dT%H:%M:%SZ}" if self.is_limit else f"{self.until:%H:%M:%SZ}"

    def holds(self, now: datetime) -> bool:
        """Whether it still rests; one that seems to rest for longer than set does not.

        That comes from a clock that was put back.
        """
        return timedelta(0) < self.until - now <= self.wait


LEAST = timedelta(minutes=1)
"""For so long a backend rests at least, also when its limit was renewed just now."""


class ParkedBackends:
    """Parks a backend until it is known to be usable again.

    Where that is not known, for 15 minutes, each further time for twice as long, up to four hours.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._parked: dict[str, _Parked] = {}

    def __bool__(self) -> bool:
        return bool(self._parked)

    def park(self, backend: str, reason: str, now: datetime) -> None:
        """Keep gaps away for a while from a backend whose program cannot be executed."""
        known = self._parked.get(backend)
        if known is not None and known.holds(now):
            return  # several were on their way when the first one failed
        wait = self._longer(backend)
        self._parked[backend] = _Parked(reason, now + wait, wait, is_limit=False)
        log.error("backend.parked", backend=backend, reason=reason, for_s=wait.total_seconds())
        self._tell("backend.parked", backend=backend, reason=reason, for_s=wait.total_seconds())

    def rest(self, backend: str, reason: str, now: datetime, until: datetime | None) -> None:
        """Keep gaps away from a backend whose account has met its limit, up to its reset.

        `until` of `None` is a reset that was not told.
        """
        known = self._parked.get(backend)
        if known is not None and known.holds(now) and (until is None or until <= known.until):
            return
        wait = self._longer(backend) if until is None else max(until - now, LEAST)
        self._parked[backend] = _Parked(reason, now + wait, wait, is_limit=True)
        for_s = round(wait.total_seconds())
        log.warning("backend.parked", backend=backend, reason=reason, for_s=for_s)
        self._tell("backend.parked", backend=backend, reason=reason, for_s=for_s)

    def _longer(self, backend: str) -> timedelta:
        known = self._parked.get(backend)
        return min(known.wait * 2, LONGEST_PAUSE) if known else FIRST_PAUSE

    def free(self, backend: str | None = None) -> None:
        """Forget why `backend`, or with `None` any of them, was parked.

        Of one backend, its program turned out to be there; that says nothing about its account.
        """
        if backend is None:
            self._parked.clear()
        elif (known := self._parked.get(backend)) is not None and not known.is_limit:
            del self._parked[backend]

    def forget(self, backend: str, now: datetime) -> None:
        """Take note that `backend` has shipped something: its next rest is a short one again."""
        known = self._parked.get(backend)
        if known is not None and not known.holds(now):
            del self._parked[backend]

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
            f" {parked.told_until}: {parked.reason}"
            for candidate in candidates
            if (parked := self._parked.get(candidate.backend)) is not None
        }
        return "; ".join(told.values())
