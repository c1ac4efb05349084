"""Tells the service manager that the loop turns, what the daemon is at, and how it ends.

It is a task of the loop for which it vouches. While that is blocked nothing is said, and the
manager acts.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING

import anyio

from chump_orchestrator.daemon.status_line import StatusLine, shortened, status_line

if TYPE_CHECKING:
    from chump_orchestrator.core.machine import ServiceManager
    from chump_orchestrator.daemon.orchestrator import Orchestrator

TURN_S = 2.0
"""How often it is seen whether there is anything new to tell."""

COUNTDOWN_S = 10.0
"""Between two lines in which nothing is new but how long it is until the next look."""

EXTENSION = timedelta(seconds=30)
"""What is asked for while starting and ending; a loop that no longer turns gets no more."""

EXTEND_AGAIN_S = 10.0

LONGEST_START_S = 600.0
"""A start that takes longer is left to the manager's own limit."""

BEYOND_GRACE_S = 60.0
"""What a teardown may take on top of its agents' grace before it is left to that limit, too."""

UNTOLD = 16
"""News kept for a manager that takes none just now; the oldest go first."""


class Watchdog:
    """The daemon's side of its service manager; where there is none, nothing is done."""

    def __init__(self, daemon: Orchestrator) -> None:
        self._daemon = daemon
        self._manager = daemon.world.manager
        self._clock = daemon.world.clock
        self._untold: deque[Callable[[], bool]] = deque(maxlen=UNTOLD)
        self._line = StatusLine("")
        self._line_s = self._alive_s = self._extended_s = -inf
        self._phase_s: float | None = None
        self._beginning = "starting"
        self._is_ready = False
        self._is_stopping = False

    async def run(self) -> None:
        """Tell what is new, until cancelled; returns at once when nobody wants to hear it."""
        manager = self._manager
        if manager is None:
            return
        half_s = manager.watchdog.total_seconds() / 2 if manager.watchdog else None
        turn_s = TURN_S if half_s is None else min(TURN_S, half_s / 2)
        while True:
            now_s = self._clock.monotonic()
            if half_s is not None and now_s - self._alive_s >= half_s and manager.alive():
                self._alive_s = now_s
            self._extend(manager, now_s)
            self._tell(manager, now_s)
            await anyio.sleep(turn_s)

    def ready(self) -> None:
        """Tell that the daemon is ready: all that it begins with has been done."""
        self._is_ready, self._phase_s = True, None
        if self._manager is not None and self._daemon.ending is None:
            self._say(self._manager, self._manager.ready)

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Tell that settings are read anew inside, and that the daemon is ready again after it."""
        manager = self._manager
        if manager is None or not self._is_ready or self._is_stopping:
            yield
            return
        self._say(manager, manager.reloading)
        try:
            yield
        finally:
            self._say(manager, manager.ready)

    def ending(self) -> None:
        """Tell that the daemon begins to end, and have time asked for from now on.

        While it only drains, it can still be asked to stop at once. A manager that takes it to be
        stopping does not do that any more, and so is told later.
        """
        self._phase_s = None
        if self._daemon.state == "stopping":
            self.stopping()

    def stopping(self) -> None:
        """Tell that the daemon is about to end; once."""
        if self._manager is not None and not self._is_stopping:
            self._is_stopping = True
            self._say(self._manager, self._manager.stopping)

    def failed(self, problem: str) -> None:
        """Tell why the daemon could not start, and that it ends."""
        self._beginning = f"could not start: {shortened(self._daemon, problem)}"
        self.stopping()

    def _say(self, manager: ServiceManager, news: Callable[[], bool]) -> None:
        self._untold.append(news)
        self._tell(manager, self._clock.monotonic())

    def _tell(self, manager: ServiceManager, now_s: float) -> None:
        """Tell what waits, in its order, and then the line, if it is another than the last."""
        while self._untold:
            if not self._untold[0]():
                return
            self._untold.popleft()
        line = status_line(self._daemon) if self._is_ready else StatusLine(self._beginning)
        is_due = line != self._line and now_s - self._line_s >= COUNTDOWN_S
        if (is_due or line.tells_more_than(self._line)) and manager.status(str(line)):
            self._line, self._line_s = line, now_s

    def _extend(self, manager: ServiceManager, now_s: float) -> None:
        """Ask for time while starting and ending, as long as that is taken to come to an end."""
        if self._phase_s is None:
            self._phase_s, self._extended_s = now_s, -inf
        is_due = now_s - self._extended_s >= EXTEND_AGAIN_S
        if is_due and now_s - self._phase_s < self._longest_s() and manager.extend(EXTENSION):
            self._extended_s = now_s

    def _longest_s(self) -> float:
        """Return for how many seconds time is asked for in what the daemon does now."""
        if not self._is_ready:
            return LONGEST_START_S
        match self._daemon.state:
            case "draining":
                return inf  # its agents have deadlines of their own
            case "stopping":
                grace = self._daemon.world.policies.deadlines.grace
                return grace.total_seconds() + BEYOND_GRACE_S
            case _:
                return 0.0
