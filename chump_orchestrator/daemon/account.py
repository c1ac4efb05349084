"""What a run came to: how each gap ended, and what was left undone and why (behaviour C8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.picker import Refusal, choose

if TYPE_CHECKING:
    from chump_orchestrator.daemon.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Account:
    """A finished run.

    `outcomes` holds the last attempt of each gap that was settled in it, in the order in which
    they were. `left` holds the open gaps that the policy allows and that stay undone, with what
    keeps each of them; gaps that the policy excludes are not among them.
    """

    outcomes: Mapping[str, Outcome]
    left: tuple[Refusal, ...]

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt of some gap did not ship."""
        return any(one.kind is not OutcomeKind.SHIPPED for one in self.outcomes.values())


async def account(scheduler: Scheduler) -> Account:
    """Return what the run of `scheduler`, which is over, came to."""
    standing = await scheduler.standing()
    choice = choose(standing, 0, scheduler.world.policies.pick)
    waiting = []
    for gap in choice.waiting:
        reason = await scheduler.why_waiting(gap)
        waiting.append(Refusal(gap.id, reason))
    return Account(dict(scheduler.last), (*waiting, *choice.held))
