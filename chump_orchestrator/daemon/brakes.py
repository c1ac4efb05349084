"""What keeps the daemon from dispatching: a pause, the fuse, resting backends, no room just now."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.attempts import RESUMED_AT
from chump_orchestrator.core.brakes import Fuse
from chump_orchestrator.core.cascade import HANDING_OVER, hands_over
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import Pause
from chump_orchestrator.core.routing import Route
from chump_orchestrator.daemon.parking import ParkedBackends

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Clock, Ledger

log = structlog.get_logger()

POSTPONED = timedelta(seconds=5)
LONGEST_POSTPONED = timedelta(minutes=1)
"""When no dispatch was possible, the next is tried after so long; doubles."""

RECENT = 100
"""So many of the latest dispatches are looked through for limits that a backend has met."""

PATIENCE = 5
"""So often in a row a run that is to end may find that no dispatch is possible."""


class Brakes:
    """The state of the daemon's brakes, kept in memory and, where it must last, in the ledger.

    While a daemon runs it is the only writer, so that what is asked here needs no ledger.
    """

    def __init__(self, ledger: Ledger, clock: Clock, tell: Callable[..., None]) -> None:
        self._ledger = ledger
        self._tell = tell
        self._clock = clock
        self._turn = anyio.Lock()
        self._not_before_s: float | None = None
        self._wait = POSTPONED
        self.pause: Pause | None = None
        self.fuse = Fuse()
        self.backends = ParkedBackends(tell)
        self.postponed_for = ""
        self._times_postponed = 0

    async def load(self) -> None:
        """Read what an earlier daemon, or an operator without one, has left."""
        self.pause = await self._ledger.pause()
        self.fuse = await self._ledger.fuse()
        now, resumed = self._clock.now(), await self._ledger.meta(RESUMED_AT)
        for record in await self._ledger.latest(RECENT):
            outcome, until, at = record.outcome, record.report.resets_at, record.ended_at
            is_over = (
                resumed is not None and at is not None and at <= datetime.fromisoformat(resumed)
            )
            if outcome and outcome.met_limit and until and until > now and not is_over:
                self.rest(record.dispatch.route, outcome.cause, outcome.reason, until)

    async def set_pause(self, pause: Pause | None) -> None:
        """Pause or, with `None`, resume; `Unavailable` when it cannot be made to last."""
        await self._ledger.set_pause(pause)
        self.pause = pause

    async def resume(self) -> None:
        """Forget the pause, the fuse, the parked backends, and that dispatching was postponed."""
        await self._ledger.set_meta(RESUMED_AT, self._clock.now().isoformat())
        await self.set_pause(None)
        await self.change_fuse(lambda _: Fuse())
        self.backends.free()
        self.succeeded()

    async def change_fuse(self, change: Callable[[Fuse], Fuse]) -> None:
        """Change the fuse; it holds at once, and is written down as soon as that is possible."""
        before, self.fuse = self.fuse, change(self.fuse)
        if self.fuse.blown_until is not None and before.blown_until is None:
            log.error("dispatching.paused", by="fuse", cause=self.fuse.cause)
            self._tell("dispatching.paused", by="fuse", reason=str(self.fuse.cause))
        if self.fuse == before:
            return
        try:
            async with self._turn:
                await self._ledger.set_fuse(self.fuse)
        except Unavailable as error:
            log.warning("fuse.unsaved", error=str(error))

    async def settled(
        self, dispatch: Dispatch, outcome: Outcome, now: datetime, *, has_heir: bool = False
    ) -> None:
        """Take note of an outcome: of failures in a row, and of a backend that is well again.

        With `has_heir` another candidate takes the gap over, and it is no failure in a row.
        """
        if outcome.kind is OutcomeKind.SHIPPED:
            self.backends.forget(dispatch.route, now)
        await self.change_fuse(
            lambda fuse: fuse.ended(dispatch.id, outcome, now, is_excused=has_heir)
        )

    def met(self, candidate: Route, outcome: Outcome) -> None:
        """Take note of what the account of a candidate has met, as its outcome tells."""
        if hands_over(outcome.kind, outcome.cause, is_excused=False):
            self.rest(candidate, outcome.cause, outcome.reason, outcome.resets_at)

    def rest(self, candidate: Route, cause: Cause | None, how: str, until: datetime | None) -> None:
        """Keep gaps away from a candidate's account for what an agent has met, if it is such."""
        if cause in HANDING_OVER:
            self.backends.rest(candidate, cause, how, self._clock.now(), until)

    def postpone(self, reason: str, *, is_lasting: bool = False) -> None:
        """Dispatch nothing for a while; for longer each time until something was dispatched.

        A run that is to end does not wait for what `is_lasting`, and not for ever for the rest.
        """
        log.warning("dispatching.postponed", reason=reason, for_s=self._wait.total_seconds())
        self._not_before_s = self._clock.monotonic() + self._wait.total_seconds()
        self._wait = min(self._wait * 2, LONGEST_POSTPONED)
        self.postponed_for = reason
        self._times_postponed += PATIENCE if is_lasting else 1

    @property
    def is_worth_waiting(self) -> bool:
        """Whether a run that is to end waits on for a dispatch to become possible."""
        return 0 < self._times_postponed < PATIENCE

    def succeeded(self) -> None:
        """Take note that something was dispatched."""
        self._not_before_s, self._wait = None, POSTPONED
        self.postponed_for, self._times_postponed = "", 0

    def postponed_s(self) -> float:
        """Return for how many more seconds nothing is dispatched; 0 when something may be."""
        if self._not_before_s is None:
            return 0.0
        return max(self._not_before_s - self._clock.monotonic(), 0.0)

    def allows(self, now: datetime, free: int) -> int:
        """Return how many of `free` slots may be filled now."""
        if self.pause is not None or self.postponed_s():
            return 0
        return self.fuse.allows(now, free)

    def ends(self, now: datetime) -> list[datetime]:
        """Return when brakes that end by themselves do."""
        ends = self.backends.ends(now)
        if self.fuse.blown_until is not None and not self.fuse.trial:
            ends.append(self.fuse.blown_until)
        if left_s := self.postponed_s():
            ends.append(now + timedelta(seconds=left_s))
        return ends

    def why(self) -> str:
        """Say what keeps everything from being dispatched; empty when nothing does."""
        if self.pause is not None:
            return f"paused by {self.pause.by}: {self.pause.reason or 'no reason given'}"
        if self.fuse.blown_until is not None:
            until = f"{self.fuse.blown_until:%Y-%m-%dT%H:%M:%SZ}"
            return f"paused until {until}, after a row of failures: {self.fuse.cause}"
        if self.postponed_for:
            return f"nothing could be dispatched: {self.postponed_for}"
        return ""
