"""How the daemon is, in one line for people who ask its service manager."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chump_orchestrator.core.gap import on_one_line

if TYPE_CHECKING:
    from chump_orchestrator.daemon.orchestrator import Orchestrator

TROUBLE_SHOWN = 160
"""Characters of what is wrong; the log has all of it."""

MINUTES_FROM_S = 120
"""From so many seconds on a span is told in minutes."""


@dataclass(frozen=True, slots=True)
class StatusLine:
    """What is told, in three parts: of these `look` alone changes with nothing but time."""

    state: str
    look: str = ""
    troubles: str = ""

    def __str__(self) -> str:
        now = ", ".join(filter(None, (self.state, self.look)))
        return "; ".join(filter(None, (now, self.troubles)))

    def tells_more_than(self, other: StatusLine) -> bool:
        """Whether anything has happened since `other` was true, beside that time went on."""
        return (self.state, self.troubles, bool(self.look)) != (
            other.state,
            other.troubles,
            bool(other.look),
        )


def status_line(daemon: Orchestrator) -> StatusLine:
    """Return the line, such as `2/4 running, 11 ready, 1 overdue, next look 14 s`."""
    state = ", ".join(_counts(daemon))
    if head := _head(daemon):
        state = f"{head}: {state}"
    return StatusLine(state, _look(daemon), "; ".join(_troubles(daemon)))


def _head(daemon: Orchestrator) -> str:
    brakes = daemon.scheduler.brakes
    if daemon.state != "running":
        return daemon.state
    if brakes.pause is not None or brakes.fuse.blown_until is not None:
        return shortened(daemon, brakes.why())
    spending, now = daemon.scheduler.admission.spending, daemon.world.clock.now()
    if spending.verdict(now).reached:
        return f"budget reached until {spending.until(now)}"
    return ""


def _counts(daemon: Orchestrator) -> Iterator[str]:
    scheduler = daemon.scheduler
    places = list(scheduler.roster.values())
    supervisors = [place.supervisor for place in places if place.supervisor is not None]
    yield f"{scheduler.running}/{daemon.world.policies.max_parallel} running"
    if open_pulls := sum(1 for one in supervisors if not one.is_running and one.has_open_pull):
        yield f"{open_pulls} waiting for a merge"
    if daemon.ending is None:
        yield f"{len(scheduler.choice.waiting)} ready"
    if overdue := sum(1 for one in supervisors if one.is_running and one.overdue):
        yield f"{overdue} overdue"
    if broken := sum(1 for place in places if place.broken):
        yield f"{broken} broken"


def _look(daemon: Orchestrator) -> str:
    """Return when the forge is asked next, or since when it is silent; empty when it is not asked.

    To the whole minute where that is enough, so that it changes seldom.
    """
    now_s, lookout = daemon.world.clock.monotonic(), daemon.lookout
    if lookout.next_s is None:
        return ""
    if lookout.failing_since_s is not None:
        return f"forge silent for {_span(now_s - lookout.failing_since_s)}"
    return f"next look {_span(lookout.next_s - now_s)}"


def _troubles(daemon: Orchestrator) -> Iterator[str]:
    if daemon.reload_problem:
        yield f"last reload failed: {shortened(daemon, daemon.reload_problem)}"
    elif daemon.keeper.problem:
        yield f"backlog kept as last read: {shortened(daemon, daemon.keeper.problem)}"
    brakes = daemon.scheduler.brakes
    is_paused = brakes.pause is not None or brakes.fuse.blown_until is not None
    if daemon.ending is None and not is_paused and brakes.postponed_s():
        yield f"nothing can be dispatched: {shortened(daemon, brakes.postponed_for)}"


def shortened(daemon: Orchestrator, text: str) -> str:
    """Return the first line of a text without secrets, cut where it gets long."""
    first, _, rest = daemon.world.hide(text).strip().partition("\n")
    line = on_one_line(first)
    if len(line) > TROUBLE_SHOWN:
        return f"{line[:TROUBLE_SHOWN]}…"
    return f"{line} …" if rest else line


def _span(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole} s" if whole < MINUTES_FROM_S else f"{whole // 60} min"
