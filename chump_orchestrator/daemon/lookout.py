"""One look at all branches per interval, shared by all supervisors (behaviour P3, P8)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import structlog

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.ports import Clock, Pulls
from chump_orchestrator.core.records import Watch
from chump_orchestrator.daemon.bell import Bell

log = structlog.get_logger()

STRETCH = 1.5
LONGEST_STRETCH = 4
"""While nothing changes, and nobody asks, the interval grows by this factor, up to so many
intervals."""

FIRST_BACKOFF = timedelta(seconds=1)
"""After a look that failed, asking is of no use for so long; doubles up to the interval."""

BREATH = timedelta(milliseconds=200)
"""Between two looks, however often they are asked for."""


TICK = timedelta(milliseconds=1)
"""The shortest wait: what is left of a longer one may be too little to pass by waiting."""

AT_ONCE = 50
"""Branches that one request to a forge asks about, as far as is known of forges."""


class Later(Protocol):
    """Branches that nobody waits for any more, and that are asked about now and then.

    Seconds are the clock's, which never goes back.
    """

    def next_s(self) -> float | None:
        """Return when the first of them is due; `None` while there are none."""
        ...

    def due(self, now_s: float, room: int) -> Sequence[Watch]:
        """Return those that are due, where there is `room` for so many beside the watched ones."""
        ...

    def answered(self, answers: Mapping[str, PullRequest], asked_s: float) -> None:
        """Take what was said of those that `due` named, by branch; returns at once."""
        ...

    def unanswered(self, asked_s: float) -> None:
        """Take note that there was no answer; returns at once."""
        ...


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
        self,
        pulls: Pulls,
        clock: Clock,
        interval: timedelta,
        tell: Callable[..., None],
        later: Later,
    ) -> None:
        self._pulls = pulls
        self._tell = tell
        self._clock = clock
        self._interval = interval
        self._watched: dict[str, tuple[Watch, Callable[[], None]]] = {}
        self._sightings: dict[str, Sighting] = {}
        self._later = later
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

    def wake(self) -> None:
        """Have it seen when the next look is due: there may be something to look for now."""
        self._bell.ring()

    def count_open(self) -> int:
        """Return how many of the watched branches have an open request."""
        return sum(1 for seen in self._sightings.values() if seen.pull.state is PullState.OPEN)

    async def run(self) -> None:
        """Look until cancelled."""
        backoff = FIRST_BACKOFF
        pause = self._interval
        answered, ended_s = 0, self._clock.monotonic()
        while True:
            self.next_s = self._due(ended_s, pause)
            if self.next_s is None:
                answered = self._asked
                await self._bell.wait()
                continue
            left_s = self.next_s - self._clock.monotonic()
            if (self._asked == answered or not self._watched) and left_s > 0:
                await self._bell.wait(max(timedelta(seconds=left_s), TICK))
                continue
            asked, looked_s = self._asked, self._clock.monotonic()
            try:
                changed = await self._look(looked_s)
            except (Unavailable, Refused, ConfigError) as error:
                self._later.unanswered(looked_s)
                self._failed(error, looked_s)
                self.next_s = self._clock.monotonic() + backoff.total_seconds()
                await self._rest(backoff)
                backoff = min(backoff * 2, self._interval)
                # Whoever asked is still without an answer.
                answered = -1
                continue
            if self.failing_since_s is not None:
                after_s = round(looked_s - self.failing_since_s, 1)
                log.info("pulls.recovered", after_s=after_s)
                self._tell("pulls.recovered", after_s=after_s)
                self.failing_since_s = None
            backoff = FIRST_BACKOFF
            is_at_rest = not changed and asked == answered
            pause = min(pause * STRETCH, self._longest) if is_at_rest else self._interval
            answered, ended_s = asked, self._clock.monotonic()
            await self._rest(BREATH)

    def _due(self, ended_s: float, pause: timedelta) -> float | None:
        """Return when to look next, unasked; `None` while there is nothing to look for.

        What is not watched any more goes along with what is, and has looks of its own otherwise.
        """
        if self._watched:
            return ended_s + pause.total_seconds()
        return self._later.next_s()

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
        room = AT_ONCE - len(watched)
        late = [one for one in self._later.due(asked_s, room) if one.branch not in watched]
        watches = [watch for watch, _ in watched.values()]
        if not watches and not late:
            return False
        answers = await self._pulls.look([*watches, *late])
        self.looks += 1
        changed = False
        for branch, (watch, on_news) in watched.items():
            now_watched = self._watched.get(branch)
            pull = answers.get(branch)
            if pull is None or now_watched is None or now_watched[0].dispatch != watch.dispatch:
                continue
            before = self._sightings.get(branch)
            changed |= before is None or before.pull.gist != pull.gist
            self._sightings[branch] = Sighting(pull, asked_s)
            on_news()
        told = {one.branch: answers[one.branch] for one in late if one.branch in answers}
        self._later.answered(told, asked_s)
        return changed

    def _failed(self, error: Exception, asked_s: float) -> None:
        self.failures[_kind(error)] += 1
        if self.failing_since_s is None:
            self.failing_since_s = asked_s
            log.warning("pulls.unavailable", error=str(error))
            self._tell("pulls.unavailable", error=str(error))
        else:
            log.debug("pulls.unavailable", error=str(error))


def _kind(error: Exception) -> str:
    """Return how a look failed, in a word: `unavailable`, `rate_limited`, `config_error`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
