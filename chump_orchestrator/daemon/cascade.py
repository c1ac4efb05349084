"""Who of a gap's candidates is asked next, and what became of the others (behaviour G5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core import cascade
from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.cascade import Round, named
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.learning import ranked
from chump_orchestrator.core.outcome import Outcome, PullState
from chump_orchestrator.core.records import Record
from chump_orchestrator.core.routing import Route, key_of

if TYPE_CHECKING:
    from chump_orchestrator.daemon.parking import ParkedBackends
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Standing:
    """What became of one candidate of a gap, in words; `name` is what people call it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


class Cascade:
    """Walks the candidates of every gap; over restarts, as the ledger has how attempts ended."""

    def __init__(self, world: World, backends: ParkedBackends) -> None:
        self._world = world
        self._backends = backends
        self._rounds: dict[str, Round] = {}
        self._attempts: dict[str, int] = {}

    def load(self, attempts: Iterable[Attempt]) -> None:
        """Take over how the attempts of earlier daemons ended."""
        known = tuple(attempts)
        self._rounds, self._attempts = cascade.rounds(known), cascade.attempts(known)

    def candidates(self, gap: Gap) -> tuple[Route, ...]:
        """Return the candidates of a gap in the order in which they are asked now."""
        return cascade.in_turn(self._route(gap), self._round(gap.id))

    def choose(self, gap: Gap, now: datetime) -> Route | None:
        """Return the candidate whose turn it is, `None` while none can be used."""
        return self._backends.first_usable(self.candidates(gap), now)

    def first(self, gap: Gap, now: datetime) -> Route | None:
        """Return who begins a new walk, whatever became of the last one."""
        return self._backends.first_usable(self._route(gap), now)

    def heir(self, record: Record, outcome: Outcome, *, is_excused: bool) -> Route | None:
        """Return who takes over the gap of a dispatch that ended so; `None` when nobody does.

        Whoever has opened a request was not kept from its work, and nobody takes over what was to
        be gone on with: its gap is parked (behaviour X6).
        """
        if record.dispatch.resumed is not None:
            return None
        has_request = record.pull is not None and record.pull.state is not PullState.NONE
        if has_request or not cascade.hands_over(
            outcome.kind, outcome.cause, is_excused=is_excused
        ):
            return None
        gap, failed = record.dispatch.gap, record.dispatch.route
        return cascade.next_after(self._route(gap), self._round(gap.id), failed)

    def settled(self, attempt: Attempt, heir: Route | None) -> None:
        """Take note of an attempt that has ended, and tell who follows it."""
        known = cascade.after(self._round(attempt.gap), attempt)
        self._rounds[attempt.gap] = known
        self._attempts[attempt.gap] = self._attempts.get(attempt.gap, 0) + 1
        if not known:
            del self._rounds[attempt.gap]
        if heir is None:
            return
        told = {
            "gap": attempt.gap,
            "dispatch": attempt.dispatch,
            "candidate": named(attempt.route),
            "cause": str(attempt.cause) if attempt.cause else "spawn",
            "next": named(heir),
        }
        log.info("gap.handed_over", **told)
        self._world.tell("gap.handed_over", **told)

    def freed(self, gap: str) -> None:
        """Take note that a gap was freed: its walk begins anew."""
        self._rounds.pop(gap, None)

    def waits_shortly(self, gap: Gap, now: datetime) -> bool:
        """Say whether a candidate that was asked too often can be used again before long."""
        return self._backends.takes_a_breath(self._route(gap), now)

    def standings(self, gap: Gap, now: datetime, *, is_held: bool = False) -> tuple[Standing, ...]:
        """Return the candidates of a gap as its route has them, and what became of each.

        Of a gap that is held for a reason of its own it is nobody's turn yet.
        """
        chosen, known = self.choose(gap, now), self._round(gap.id)
        told = []
        for one in self._route(gap):
            parts = []
            if setback := known.get(key_of(one)):
                at = f" at {setback.at:%Y-%m-%dT%H:%M:%SZ}" if setback.at else ""
                parts.append(f"handed it over{at}: {setback.cause}")
            if rest := self._backends.rest_of(one, now):
                parts.append(rest)
            if chosen is not None and key_of(one) == key_of(chosen):
                parts.append("first, once the gap may go on" if is_held else "its turn")
            told.append(Standing(named(one), "; ".join(parts) or "later"))
        return tuple(told)

    def _route(self, gap: Gap) -> tuple[Route, ...]:
        world, attempts = self._world, self._attempts.get(gap.id, 0)
        return ranked(gap, world.policies.routes, world.experience, attempts)

    def _round(self, gap: str) -> Round:
        return self._rounds.get(gap, {})
