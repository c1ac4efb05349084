"""One look at all branches per interval, shared by all supervisors (behaviour P3, P8)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.ports import Clock, Pulls
from chump_orchestrator.core.records import Record, Watch
from chump_orchestrator.core.resuming import watched_since
from chump_orchestrator.daemon.bell import Bell

log = structlog.get_logger()

STRETCH = 1.5
LONGEST_STRETCH = 4
"""While nothing changes the interval grows by this factor, up to so many intervals."""

FIRST_BACKOFF = timedelta(seconds=1)
"""After a look that failed, asking is of no use for so long; doubles up to the interval."""

BREATH = timedelta(milliseconds=200)
"""Between two looks, however often they are asked for."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a look said of a branch; `asked_s` is the monotonic second when it was put."""

    pull: PullRequest
    asked_s: float


class Lookout:
    """Looks at the branches of all dispatches and tells those who watch them.

    A look that fails is no news: the last sighting stays, and the next look is tried later.
    """

    def __init__(
        self, pulls: Pulls, clock: Clock, interval: timedelta, tell: Callable[..., None]
    ) -> None:
        self._pulls = pulls
        self._tell = tell
        self._clock = clock
        self._interval = interval
        self._watched: dict[str, tuple[Watch, Callable[[], None]]] = {}
        self._sightings: dict[str, Sighting] = {}
        self._bell = Bell()
        self._asked = 0
        self.failing_since_s: float | None = None
        self.next_s: float | None = None
        """When the next look is due, unless one is asked for; `None` while none is."""
        self.looks = 0
        self.failures: Counter[str] = Counter()

    def watch(self, watch: Watch, on_news: Callable[[], None]) -> None:
        """Look for this branch from now on; `on_news` is called after every look that answered."""
        self._watched[watch.branch] = (watch, on_news)
        self.ask()

    def forget(self, branch: str) -> None:
        """Look for this branch no more; quiet when it was not watched."""
        self._watched.pop(branch, None)
        self._sightings.pop(branch, None)
        if not self._watched:
            self.next_s = None

    def sighting(self, branch: str) -> Sighting | None:
        """Return the last answer about a branch, or `None`."""
        return self._sightings.get(branch)

    def ask(self) -> None:
        """Have the next look made soon: something has happened that it may show."""
        self._asked += 1
        self._bell.ring()

    def count_open(self) -> int:
        """Return how many of the watched branches have an open request."""
        return sum(1 for seen in self._sightings.values() if seen.pull.state is PullState.OPEN)

    async def run(self) -> None:
        """Look until cancelled."""
        backoff = FIRST_BACKOFF
        pause = self._interval
        answered = 0
        while True:
            if not self._watched:
                self.next_s = None
                await self._bell.wait()
                continue
            if self._asked == answered:
                self.next_s = self._clock.monotonic() + pause.total_seconds()
                await self._bell.wait(pause)
            if not self._watched:
                continue
            asked, looked_s = self._asked, self._clock.monotonic()
            try:
                changed = await self._look(looked_s)
            except (Unavailable, Refused, ConfigError) as error:
                self._failed(error, looked_s)
                self.next_s = self._clock.monotonic() + backoff.total_seconds()
                await self._rest(backoff)
                backoff = min(backoff * 2, self._interval)
                # Whoever asked is still without an answer.
                answered = -1
                continue
            answered = asked
            if self.failing_since_s is not None:
                after_s = round(looked_s - self.failing_since_s, 1)
                log.info("pulls.recovered", after_s=after_s)
                self._tell("pulls.recovered", after_s=after_s)
                self.failing_since_s = None
            backoff = FIRST_BACKOFF
            pause = self._interval if changed else min(pause * STRETCH, self._longest)
            await self._rest(BREATH)

    def set_interval(self, interval: timedelta) -> None:
        """Look as often as this from the next look on."""
        self._interval = interval

    @property
    def _longest(self) -> timedelta:
        return self._interval * LONGEST_STRETCH

    async def _rest(self, span: timedelta) -> None:
        until = self._clock.monotonic() + span.total_seconds()
        while (left := until - self._clock.monotonic()) > 0:
            await self._bell.wait(timedelta(seconds=left))

    async def _look(self, asked_s: float) -> bool:
        watched = dict(self._watched)
        answers = await self._pulls.look([watch for watch, _ in watched.values()])
        self.looks += 1
        changed = False
        for branch, (watch, on_news) in watched.items():
            now_watched = self._watched.get(branch)
            pull = answers.get(branch)
            if pull is None or now_watched is None or now_watched[0].dispatch != watch.dispatch:
                continue
            before = self._sightings.get(branch)
            changed |= before is None or _gist(before.pull) != _gist(pull)
            self._sightings[branch] = Sighting(pull, asked_s)
            on_news()
        return changed

    def _failed(self, error: Exception, asked_s: float) -> None:
        self.failures[_kind(error)] += 1
        if self.failing_since_s is None:
            self.failing_since_s = asked_s
            log.warning("pulls.unavailable", error=str(error))
            self._tell("pulls.unavailable", error=str(error))
        else:
            log.debug("pulls.unavailable", error=str(error))


def watch_of(record: Record) -> Watch | None:
    """Return what is to be looked for of a dispatch; `None` when it never had a branch."""
    dispatch, workspace = record.dispatch, record.workspace
    if workspace is None:
        return None
    before = dispatch.resumed.number if dispatch.resumed is not None else None
    since = watched_since(record)
    return Watch(dispatch.id, workspace.branch, workspace.base, since, accepted=before)


def _kind(error: Exception) -> str:
    """Return how a look failed, in a word: `unavailable`, `rate_limited`, `config_error`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()


def _gist(pull: PullRequest) -> tuple[object, ...]:
    return pull.state, pull.number, pull.checks, pull.head
