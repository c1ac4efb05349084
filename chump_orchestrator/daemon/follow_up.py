"""Whether an agent that has ended is to go on with its open request, as that failed (P10).

One session at a time, one for each head or review, and no more in a row than the brake allows.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.complaints import new_reviews
from chump_orchestrator.core.outcome import Checks, Outcome, OutcomeKind, PullState
from chump_orchestrator.daemon.reopening import explained, leaves_session

if TYPE_CHECKING:
    from chump_orchestrator.core.dispatch import Dispatch
    from chump_orchestrator.core.outcome import PullRequest
    from chump_orchestrator.core.records import Record
    from chump_orchestrator.daemon.supervisor import Supervisor
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

REVIEW_GLANCE = timedelta(minutes=5)
"""How often it is asked who has asked for changes: a second review changes nothing else."""


class FollowUp:
    """What becomes of the request of one dispatch.

    `why` says what is to be put right once a session is wanted for it, and is empty before.
    `is_granted` once there is a slot for it: then its dispatch ends, and another one goes on, and
    `taken` says which session in a row that is.
    """

    def __init__(self, world: World) -> None:
        self.why = ""
        self.is_granted = False
        self.taken = 0
        self._world = world
        self._glanced_s: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether a session is wanted and not yet granted."""
        return bool(self.why) and not self.is_granted

    async def consider(self, record: Record, pull: PullRequest | None) -> bool:
        """Look at the request of an agent that has ended; say whether something has changed."""
        if self.is_granted:
            return False
        before, self.why = self.why, await self._complaint(record, pull)
        return bool(before) != bool(self.why)

    async def attend(
        self,
        record: Record,
        pull: PullRequest,
        store: Callable[[Record], Awaitable[None]],
        on_change: Callable[[], None],
    ) -> Outcome | None:
        """Return how a dispatch ends whose request another session goes on with now, else `None`.

        `on_change` is called when one is wanted that was not, or is not any more.
        """
        if self.is_granted:
            await store(replace(record, pull=pull))
            return self.take(record, pull)
        if await self.consider(record, pull):
            on_change()
        return None

    def take(self, record: Record, pull: PullRequest) -> Outcome:
        """Return how the dispatch ends whose request another session goes on with."""
        self.taken = _next_session(record)
        name = f"pull request {pull.number}" if pull.number else "its request"
        return Outcome(OutcomeKind.CI_FAILED, f"{name} {self.why}; another session goes on with it")

    async def _complaint(self, record: Record, pull: PullRequest | None) -> str:
        world = self._world
        if not world.policies.resumes_failed or pull is None or pull.state is not PullState.OPEN:
            return ""
        # The one that opened the request counts as well (X2).
        if _next_session(record) >= world.policies.retry.sessions:
            return ""
        if not leaves_session(world, record):
            return ""
        resumed = record.dispatch.resumed
        if pull.checks is Checks.FAILING and (resumed is None or pull.head != resumed.head):
            return "has failing checks"
        if pull.changes_requested and await self._has_new_review(record, pull):
            return "is to be changed, says a reviewer"
        return ""

    async def _has_new_review(self, record: Record, pull: PullRequest) -> bool:
        if self.why:
            return True
        now_s = self._world.clock.monotonic()
        glanced_s, glance_s = self._glanced_s, REVIEW_GLANCE.total_seconds()
        if glanced_s is not None and now_s - glanced_s < glance_s:
            return False
        self._glanced_s = now_s
        since = record.launched_at if record.dispatch.resumed is not None else None
        return new_reviews(await explained(self._world, record, pull), since)


def grant(
    supervisors: Iterable[Supervisor], free: int, may_start: Callable[[Dispatch], bool]
) -> int:
    """Grant the sessions that are wanted, up to `free` of them; return how many."""
    granted = 0
    for supervisor in supervisors:
        dispatch, follow_up = supervisor.record.dispatch, supervisor.follow_up
        if granted >= free or not follow_up.is_wanted or not may_start(dispatch):
            continue
        follow_up.is_granted = True
        granted += 1
        log.info(
            "dispatch.handed_over", gap=dispatch.gap.id, dispatch=dispatch.id, why=follow_up.why
        )
        supervisor.bell.ring()
    return granted


def _next_session(record: Record) -> int:
    """Return which session in a row the next one would be; see `core.dispatch.Resumed`."""
    resumed = record.dispatch.resumed
    return (resumed.times if resumed is not None else 0) + 1
