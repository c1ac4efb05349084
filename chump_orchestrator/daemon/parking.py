"""Backends that cannot be used: kept from gaps for a while (behaviour A4, G5, X4).

What is wrong with its program is wrong with a whole backend; an allowance, a log-in and a rate
belong to an account, which is a backend and the prefix of its provider, with all its models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from chump_orchestrator.core.brakes import FIRST_PAUSE, LONGEST_PAUSE
from chump_orchestrator.core.cascade import account_of
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.routing import Route

log = structlog.get_logger()

LEAST = timedelta(minutes=1)
"""For so long a backend rests at least, also when its limit was renewed just now."""

LONGEST_BREATH = timedelta(minutes=15)
"""Up to this the rests of an account that asks too often double."""

CALM = timedelta(hours=1)
"""After so long without one, the next rest for asking too often is a short one again."""

Whom = tuple[str, str | None]
"""A backend and the prefix of its provider; `None` stands for the backend with all providers."""


@dataclass(frozen=True, slots=True)
class _Parked:
    reason: str
    until: datetime
    wait: timedelta
    cause: Cause

    @property
    def told_until(self) -> str:
        """When it may be used again; with the day where that may be another one."""
        is_far = self.cause is Cause.USAGE_LIMIT
        return f"{self.until:%Y-%m-%dT%H:%M:%SZ}" if is_far else f"{self.until:%H:%M:%SZ}"

    def holds(self, now: datetime) -> bool:
        """Whether it still rests; one that seems to rest for longer than set does not.

        That comes from a clock that was put back.
        """
        return timedelta(0) < self.until - now <= self.wait


class ParkedBackends:
    """Parks a backend until it is known to be usable again.

    Where that is not known, for 15 minutes, each further time for twice as long, up to four hours;
    one that was asked too often for a minute, up to 15 minutes.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._parked: dict[Whom, _Parked] = {}

    def __bool__(self) -> bool:
        return bool(self._parked)

    def park(self, backend: str, reason: str, now: datetime) -> None:
        """Keep gaps away for a while from a backend whose program cannot be executed."""
        self._park((backend, None), Cause.SPAWN, reason, now, None)

    def rest(
        self, candidate: Route, cause: Cause, how: str, now: datetime, until: datetime | None
    ) -> None:
        """Keep gaps away from an account that has met its limit, its rate, or is not logged in.

        `how` is how an agent ended by it; `until` the reset of a limit, `None` where none was told.
        """
        match cause:
            case Cause.AUTH:
                what = f"it is not logged in, or its key is wrong ({how}); see doctor, then resume"
                until = None
            case Cause.RATE_LIMITED:
                what, until = f"its provider is asked too often ({how})", None
            case _:
                what = f"its account has met its limit ({how})"
        self._park(account_of(candidate), cause, what, now, until)

    def _park(
        self, whom: Whom, cause: Cause, reason: str, now: datetime, until: datetime | None
    ) -> None:
        known = self._parked.get(whom)
        holding = known if known is not None and known.holds(now) else None
        if holding is not None and holding.cause is cause and until is None:
            return  # several were on their way when the first one failed
        wait = self._longer(whom, cause, now) if until is None else max(until - now, LEAST)
        if holding is not None and now + wait <= holding.until:
            return
        self._parked[whom] = _Parked(reason, now + wait, wait, cause)
        backend, provider_pfx = whom
        for_s = round(wait.total_seconds())
        told = {"backend": backend, "reason": reason, "for_s": for_s}
        if provider_pfx:
            told["provider_pfx"] = provider_pfx
        if cause in (Cause.SPAWN, Cause.AUTH):
            log.error("backend.parked", **told)
        else:
            log.warning("backend.parked", **told)
        self._tell("backend.parked", **told)

    def _longer(self, whom: Whom, cause: Cause, now: datetime) -> timedelta:
        is_rate = cause is Cause.RATE_LIMITED
        first, longest = (LEAST, LONGEST_BREATH) if is_rate else (FIRST_PAUSE, LONGEST_PAUSE)
        known = self._parked.get(whom)
        if known is None or known.cause is not cause or (is_rate and now - known.until > CALM):
            return first
        return min(known.wait * 2, longest)

    def free(self, backend: str | None = None) -> None:
        """Forget why `backend`, or with `None` any of them, was parked.

        Of one backend, its program turned out to be there; that says nothing about its accounts.
        """
        if backend is None:
            self._parked.clear()
        else:
            self._parked.pop((backend, None), None)

    def forget(self, candidate: Route, now: datetime) -> None:
        """Take note that `candidate` has shipped something: its next rest is a short one again."""
        for whom in ((candidate.backend, None), account_of(candidate)):
            known = self._parked.get(whom)
            if known is not None and not known.holds(now):
                del self._parked[whom]

    def _of(self, candidate: Route, now: datetime) -> _Parked | None:
        """Return what keeps gaps from a candidate for longest, `None` when nothing does."""
        whoms = ((candidate.backend, None), account_of(candidate))
        held = [one for whom in whoms if (one := self._parked.get(whom)) and one.holds(now)]
        return max(held, key=lambda one: one.until, default=None)

    def first_usable(self, candidates: Iterable[Route], now: datetime) -> Route | None:
        """Return the first candidate that is not parked, or `None`."""
        return next((one for one in candidates if self._of(one, now) is None), None)

    def ends(self, now: datetime) -> list[datetime]:
        """Return when each of them may be tried again."""
        return [parked.until for parked in self._parked.values() if parked.holds(now)]

    def takes_a_breath(self, candidates: Iterable[Route], now: datetime) -> bool:
        """Say whether one of these may be used again before long, as it was asked too often."""
        held = (self._of(candidate, now) for candidate in candidates)
        return any(one is not None and one.cause is Cause.RATE_LIMITED for one in held)

    def rest_of(self, candidate: Route, now: datetime) -> str:
        """Return until when a candidate is parked, and why; empty when it is not."""
        held = self._of(candidate, now)
        return f"parked until {held.told_until}: {held.reason}" if held else ""

    def why(self, candidates: Iterable[Route], now: datetime) -> str:
        """Say why these candidates cannot be used; empty for those that can."""
        told = {
            account_of(one): f"backend {' '.join(filter(None, account_of(one)))} is {rest}"
            for one in candidates
            if (rest := self.rest_of(one, now))
        }
        return "; ".join(dict.fromkeys(told.values()))
