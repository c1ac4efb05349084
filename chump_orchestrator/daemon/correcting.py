"""Asks on about requests of settled dispatches, and puts right what a later merge disproves (P5).

Rarely, beside the questions of those who wait; over restarts, as the ledger tells whom of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.brakes import fingerprint
from chump_orchestrator.core.corrections import (
    ASKED_FOR,
    correction,
    latest_of_branches,
    may_ship_yet,
    rest_of,
    watch_of,
)
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import Outcome, PullRequest, PullState
from chump_orchestrator.core.routing import task_class
from chump_orchestrator.daemon.bell import Bell

if TYPE_CHECKING:
    from chump_orchestrator.core.records import Record, Watch
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

READ_AGAIN = timedelta(hours=1)
"""The ledger is read so often, and whenever a dispatch is settled."""

TRY_AGAIN = timedelta(seconds=5)
"""Between two attempts at a ledger that does not answer."""

UNANSWERED = timedelta(minutes=5)
"""After a question that nobody answered, none is put so long for this alone."""

PATIENCE = timedelta(hours=1)
"""For so long requests wait for room beside the watched ones; then they are asked about anyway."""


@dataclass(slots=True)
class _Late:
    """A request that is asked about; `next_s` is when, in monotonic seconds."""

    record: Record
    watch: Watch
    next_s: float


class Corrector:
    """Names the branches to ask about, and writes down what becomes of them.

    `backlog` gives the one in use. `shipped` is told of each gap that counts as shipped now, once
    that is written, and `wake` when there may be something to ask. Keeps the promises of
    `lookout.Later`.
    """

    def __init__(
        self,
        world: World,
        *,
        backlog: Callable[[], Backlog],
        shipped: Callable[[str, Outcome], None],
        wake: Callable[[], None],
    ) -> None:
        self._world = world
        self._backlog = backlog
        self._shipped = shipped
        self._wake = wake
        self._bell = Bell()
        self._late: dict[str, _Late] = {}
        self._seen: dict[str, PullRequest] = {}
        self._is_stale = True
        self._has_read = False
        self._has_word = False
        self._word = anyio.Event()

    def hear(self, event: str, _fields: Mapping[str, object]) -> None:
        """Take note of a dispatch that was settled; a listener."""
        if event == "dispatch.settled":
            self._is_stale = True
            self._bell.ring()

    def next_s(self) -> float | None:
        return min((one.next_s for one in self._late.values()), default=None)

    def due(self, now_s: float, room: int) -> Sequence[Watch]:
        due = sorted(self._late.values(), key=lambda one: one.next_s)
        due = [one for one in due if one.next_s <= now_s]
        if due and room <= 0:
            # One request more, and a point; the longest that waits decides for all of them.
            has_waited = now_s - due[0].next_s >= PATIENCE.total_seconds()
            room = len(due) if has_waited else 0
        return [one.watch for one in due[:room]]

    def answered(self, answers: Mapping[str, PullRequest], asked_s: float) -> None:
        now = self._world.clock.now()
        for branch, pull in answers.items():
            late = self._late.get(branch)
            if late is None:
                continue
            age = now - (late.record.ended_at or now)
            late.next_s = asked_s + rest_of(age).total_seconds()
            before = late.record.pull
            # That there is none any more would be news of the forge, not of the request.
            is_new = before is None or (before.state, before.number) != (pull.state, pull.number)
            if is_new and pull.state is not PullState.NONE:
                self._seen[branch] = pull
        self._has_word = True
        self._bell.ring()

    def unanswered(self, asked_s: float) -> None:
        soonest_s = asked_s + UNANSWERED.total_seconds()
        for late in self._late.values():
            late.next_s = max(late.next_s, soonest_s)
        self._has_word = True
        self._bell.ring()

    async def first_word(self, at_most: timedelta) -> None:
        """Wait until all that an earlier daemon left has been asked about once, or cannot be."""
        with anyio.move_on_after(at_most.total_seconds()):
            await self._word.wait()

    def hush(self) -> None:
        """Let nobody wait for the first word any more."""
        self._word.set()

    async def run(self) -> None:
        """Read the ledger and write to it, as it comes; until cancelled."""
        while True:
            rest = READ_AGAIN
            try:
                await self._write()
                await self._read()
                if self._has_word:
                    self._word.set()
            except Unavailable as error:
                log.warning("ledger.unavailable", error=str(error))
                rest = TRY_AGAIN
            except Exception:
                # Nobody waits for a correction; whoever works now must not suffer from it.
                log.exception("dispatch.uncorrected")
            if not await self._bell.wait(rest):
                self._is_stale = True

    async def _read(self) -> None:
        """Learn from the ledger whom to ask about."""
        if not self._is_stale:
            return
        self._is_stale = False
        now, now_s = self._world.clock.now(), self._world.clock.monotonic()
        try:
            records = await self._world.ledger.late(now - ASKED_FOR)
        except Unavailable:
            self._is_stale = True
            raise
        found: dict[str, _Late] = {}
        asked = latest_of_branches(one for one in records if may_ship_yet(one, now))
        for branch, record in asked.items():
            known, watch = self._late.get(branch), watch_of(record)
            if known is not None and known.watch == watch:
                known.record = record
                found[branch] = known
            elif watch is not None:
                age = now - (record.ended_at or now)
                # What ended under an earlier daemon may have been merged meanwhile.
                first_s = now_s + (rest_of(age).total_seconds() if self._has_read else 0.0)
                found[branch] = _Late(record, watch, first_s)
        self._late, self._has_read = found, True
        if not any(one.next_s <= now_s for one in found.values()):
            self._has_word = True
        self._wake()

    async def _write(self) -> None:
        """Write down what was seen; what cannot be written now stays, and is tried again."""
        for branch, pull in list(self._seen.items()):
            late = self._late.get(branch)
            if late is None:
                del self._seen[branch]
                continue
            if pull.state is PullState.MERGED:
                await self._correct(late.record, pull)
                self._late.pop(branch, None)
            else:
                await self._world.ledger.sighted(late.record.dispatch.id, pull)
                self._is_stale = True
            # Something newer may have been seen meanwhile.
            if self._seen.get(branch) is pull:
                del self._seen[branch]

    async def _correct(self, record: Record, pull: PullRequest) -> None:
        world, gap = self._world, record.dispatch.gap
        known = self._backlog().index.gaps.get(gap.id)
        fixed = correction(
            record,
            pull,
            world.clock.now(),
            task_class=task_class(gap.id, world.policies.routes.classes),
            # Opened anew with another text, the gap asks for other work than was merged.
            ships=known is None or fingerprint(known) == fingerprint(gap),
        )
        with anyio.CancelScope(shield=True):
            if not await world.ledger.correct(record.dispatch.id, fixed):
                return
        fields: dict[str, object] = {
            "gap": gap.id,
            "dispatch": record.dispatch.id,
            "backend": record.dispatch.route.backend,
            "was": str(record.outcome.kind) if record.outcome else None,
            "outcome": str(fixed.outcome.kind),
            "pull": pull.number,
            "ships": fixed.ships,
        }
        log.info("dispatch.corrected", **fields)
        world.tell("dispatch.corrected", **fields)
        if fixed.ships:
            self._shipped(gap.id, fixed.outcome)
