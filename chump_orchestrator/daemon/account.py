"""What a run came to: how each gap ended, and what was left undone and why (behaviour C8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.picker import Refusal, choose

if TYPE_CHECKING:
    from chump_orchestrator.daemon.scheduler import Scheduler

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Account:
    """A finished run.

    `outcomes` holds the last attempt of each gap that was settled in it, in the order in which
    they were. `left` holds the open gaps that the policy allows and that stay undone, with what
    keeps each of them; gaps that the policy excludes are not among them. `interrupted` says that
    it was ended by SIGINT, `held_up` why nothing more could be dispatched, or is empty; `broken`
    names the gaps whose dispatch ended in a bug.
    """

    outcomes: Mapping[str, Outcome]
    left: tuple[Refusal, ...] = ()
    interrupted: bool = False
    held_up: str = ""
    broken: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether not all went as it should, for the exit code of `run --once` (behaviour C3)."""
        unshipped = any(one.kind is not OutcomeKind.SHIPPED for one in self.outcomes.values())
        return unshipped or bool(self.held_up or self.broken)


async def account(scheduler: Scheduler, *, interrupted: bool) -> Account:
    """Return what the run of `scheduler`, which is over, came to."""
    found = Account(
        dict(scheduler.last),
        interrupted=interrupted,
        held_up=scheduler.brakes.postponed_for,
        broken=tuple(sorted(gap for gap, place in scheduler.roster.items() if place.broken)),
    )
    try:
        standing = await scheduler.standing()
    except Unavailable as error:
        log.warning("account.incomplete", error=str(error))
        return found
    choice = choose(standing, 0, scheduler.world.policies.pick)
    waiting = (Refusal(gap.id, scheduler.why_waiting(gap) or "no slot") for gap in choice.waiting)
    left = (*waiting, *choice.held)
    return Account(found.outcomes, left, interrupted, found.held_up, found.broken)
