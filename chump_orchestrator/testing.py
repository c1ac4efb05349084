"""Honest twins of the ports: they pass the same contract tests as what they stand for.

For tests, of this package and of plug-ins; nothing in production imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain

from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.brakes import Fuse, History
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.corrections import CORRECTABLE, MOST, Correction
from chump_orchestrator.core.dispatch import Dispatch
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Effort, Gap, domain_of, on_one_line
from chump_orchestrator.core.learning import Experience, Outcomes, experience
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullRequest
from chump_orchestrator.core.records import (
    DispatchState,
    Parked,
    Pause,
    Record,
    Remembered,
    Settlement,
)
from chump_orchestrator.core.reflection import Reflection


class MemoryLedger:
    """Twin of the ledger: keeps everything in dictionaries, in the order of its coming."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._freed: set[str] = set()
        self._excused: set[str] = set()
        self._accepted: set[str] = set()
        self._unaccepted_usd: dict[str, float] = {}
        self._outbox: dict[str, Reflection] = {}
        self._corrections: dict[str, Reflection] = {}
        self._parked: dict[str, Parked] = {}
        self._shipped: dict[str, date] = {}
        self._confirmed: set[str] = set()
        self._pause: Pause | None = None
        self._fuse = Fuse()
        self._meta: dict[str, str] = {}
        self._requested: dict[str, int | None] = {}

    async def add(self, dispatch: Dispatch) -> None:
        if dispatch.id in self._records:
            raise Refused(f"dispatch {dispatch.id} is recorded already")
        for rival in self._of(dispatch.gap.id):
            if rival.state.is_active:
                msg = f"{dispatch.gap.id} has an active dispatch already, {rival.dispatch.id}"
                raise Refused(msg)
        self._records[dispatch.id] = Record(dispatch, DispatchState.PLANNED)
        if dispatch.resumed is not None and self._requested.get(dispatch.gap.id) is not None:
            del self._requested[dispatch.gap.id]

    async def update(self, dispatch_id: str, record: Record) -> None:
        if not record.state.is_active or record.outcome is not None:
            raise Refused(f"dispatch {dispatch_id}: only settle and abort end a dispatch")
        if record.dispatch.id != dispatch_id:
            raise Refused(f"dispatch {dispatch_id}: the record is that of {record.dispatch.id}")
        self._active(dispatch_id)
        self._records[dispatch_id] = record

    async def settle(self, dispatch_id: str, settlement: Settlement) -> None:
        record = self._active(dispatch_id)
        gap = record.dispatch.gap.id
        is_due = settlement.reflection is not None
        self._records[dispatch_id] = replace(
            record,
            state=DispatchState.SETTLED if is_due else DispatchState.DONE,
            outcome=settlement.outcome,
            ended_at=settlement.ended_at,
            siblings=settlement.siblings,
            cost_usd=record.cost_usd if settlement.cost_usd is None else settlement.cost_usd,
            tokens=record.tokens if settlement.tokens is None else settlement.tokens,
            report=record.report if settlement.report is None else settlement.report,
        )
        if settlement.reflection is not None:
            self._outbox[dispatch_id] = settlement.reflection
        if settlement.excused:
            self._excused.add(dispatch_id)
        if settlement.progress:
            self._accepted |= {each.dispatch.id for each in self._of(gap)}
            self._unaccepted_usd |= {each.dispatch.id: 0.0 for each in self._of(gap)}
        self._unaccepted_usd[dispatch_id] = settlement.unaccepted_usd or 0.0
        self._parked.pop(gap, None)
        if settlement.parked is not None:
            self._parked[settlement.parked.gap] = settlement.parked
        if settlement.resume:
            self._requested[gap] = settlement.resume
        if settlement.outcome.kind is OutcomeKind.SHIPPED:
            self._shipped[gap] = settlement.ended_at.astimezone(UTC).date()
            self._confirmed.discard(gap)

    async def late(self, since: datetime) -> tuple[Record, ...]:
        found = [one for one in self._records.values() if self._is_correctable(one)]
        ended = [one for one in found if one.ended_at is not None and one.ended_at >= since]
        return tuple(ended[-MOST:])

    async def sighted(self, dispatch_id: str, pull: PullRequest) -> None:
        record = self._records.get(dispatch_id)
        if record is not None and self._is_correctable(record):
            self._records[dispatch_id] = replace(record, pull=pull)

    async def correct(self, dispatch_id: str, correction: Correction) -> bool:
        record = self._records.get(dispatch_id)
        if record is None or record.outcome is None or not self._is_correctable(record):
            return False
        gap, told = record.dispatch.gap.id, correction.reflection
        self._records[dispatch_id] = replace(
            record,
            outcome=correction.outcome,
            pull=correction.pull,
            corrected_at=correction.at,
            corrected_from=record.outcome.kind,
        )
        if waiting := self._outbox.get(dispatch_id):
            self._outbox[dispatch_id] = _put_right(waiting, told)
        self._corrections[dispatch_id] = told
        self._accepted |= {each.dispatch.id for each in self._of(gap)}
        self._unaccepted_usd |= {each.dispatch.id: 0.0 for each in self._of(gap)}
        if correction.ships:
            self._parked.pop(gap, None)
            self._shipped.setdefault(gap, correction.at.astimezone(UTC).date())
        return True

    async def corrections(self) -> tuple[Reflection, ...]:
        return tuple(self._corrections.values())

    async def correction_delivered(self, dispatch_id: str) -> None:
        self._corrections.pop(dispatch_id, None)

    def _is_correctable(self, record: Record) -> bool:
        is_over = record.outcome is not None and record.outcome.kind in CORRECTABLE
        is_gone_on_with = any(
            one.dispatch.resumed is not None
            and one.dispatch.resumed.dispatch == record.dispatch.id
            and (one.state.is_active or one.launched_at is not None)
            for one in self._records.values()
        )
        is_due = record.corrected_at is None and not is_gone_on_with
        return is_over and not record.state.is_active and is_due

    async def tidied(self, dispatch_id: str) -> None:
        if dispatch_id in self._records:
            self._records[dispatch_id] = replace(self._records[dispatch_id], tidied=True)

    async def abort(self, dispatch_id: str, reason: str, at: datetime) -> None:  # noqa: ARG002
        record = self._active(dispatch_id)
        self._records[dispatch_id] = replace(record, state=DispatchState.ABORTED, ended_at=at)

    async def records(self, *, active: bool = False, untidy: bool = False) -> tuple[Record, ...]:
        return tuple(
            record
            for record in self._records.values()
            if not (active or untidy)
            or (active and record.state.is_active)
            or (untidy and not record.state.is_active and not record.tidied)
        )

    async def ends(self, dispatch_ids: Sequence[str]) -> Mapping[str, datetime | None]:
        asked = (self._records[one] for one in dispatch_ids if one in self._records)
        return {one.dispatch.id: None if one.state.is_active else one.ended_at for one in asked}

    async def latest(self, limit: int, gap: str = "") -> tuple[Record, ...]:
        found = self._of(gap) if gap else list(self._records.values())
        return tuple(found[::-1][:limit])

    async def history(self, gap: str) -> History:
        counted = [each for each in self._of(gap) if each.dispatch.id not in self._freed]
        outcomes = [each.outcome for each in counted if each.outcome is not None]
        return History(
            failures=sum(
                each.outcome.is_failure
                for each in counted
                if each.outcome is not None and each.dispatch.id not in self._excused
            ),
            refusals=sum(outcome.kind is OutcomeKind.RACE_ABANDONED for outcome in outcomes),
            sessions=sum(
                each.launched_at is not None and each.dispatch.id not in self._accepted
                for each in counted
                if each.outcome is None
                or each.outcome.kind not in (OutcomeKind.SPAWN_FAILED, OutcomeKind.CANCELLED)
            ),
            usd=sum(self._unaccepted_usd.get(each.dispatch.id, 0.0) for each in counted),
        )

    async def chronicle(self) -> tuple[Attempt, ...]:
        return tuple(
            Attempt(
                dispatch=each.dispatch.id,
                gap=each.dispatch.gap.id,
                effort=each.dispatch.gap.effort,
                route=each.dispatch.route,
                had_agent=each.launched_at is not None,
                ended_at=None if each.state.is_active else each.exited_at or each.ended_at,
                kind=None if each.outcome is None else each.outcome.kind,
                cause=None if each.outcome is None else each.outcome.cause,
                cost_usd=each.cost_usd,
                tokens=each.tokens,
                is_excused=each.dispatch.id in self._excused,
                is_freed=each.dispatch.id in self._freed,
            )
            for each in self._records.values()
        )

    async def attempts(self, gap: str) -> int:
        return len(self._of(gap))

    async def outbox(self) -> tuple[Reflection, ...]:
        return tuple(self._outbox.values())

    async def delivered(self, dispatch_id: str) -> None:
        self._outbox.pop(dispatch_id, None)
        record = self._records.get(dispatch_id)
        if record is not None and record.state is DispatchState.SETTLED:
            self._records[dispatch_id] = replace(record, state=DispatchState.DONE)

    async def parked(self) -> tuple[Parked, ...]:
        return tuple(self._parked[gap] for gap in sorted(self._parked))

    async def park(self, parked: Parked) -> None:
        self._parked[parked.gap] = parked

    async def free(self, gap: str, at: datetime) -> None:  # noqa: ARG002
        self._parked.pop(gap, None)
        self._shipped.pop(gap, None)
        self._confirmed.discard(gap)
        self._freed |= {each.dispatch.id for each in self._of(gap) if not each.state.is_active}

    async def shipped(self) -> Mapping[str, date]:
        return dict(self._shipped)

    async def confirm_shipped(self, gaps: Sequence[str]) -> None:
        self._confirmed |= self._shipped.keys() & set(gaps)

    async def confirmed(self) -> frozenset[str]:
        return frozenset(self._confirmed)

    async def pause(self) -> Pause | None:
        return self._pause

    async def set_pause(self, pause: Pause | None) -> None:
        self._pause = pause

    async def fuse(self) -> Fuse:
        return self._fuse

    async def set_fuse(self, fuse: Fuse) -> None:
        self._fuse = fuse

    async def meta(self, key: str) -> str | None:
        """Return what was kept under `key`, `None` when nothing was."""
        return self._meta.get(key)

    async def set_meta(self, key: str, value: str) -> None:
        """Keep a text under `key`, in place of an earlier one."""
        self._meta[key] = value

    async def request_dispatch(self, gap: str, *, resume: int | None = None) -> None:
        """Keep an operator's wish to have `gap` dispatched now (X2); the last one counts."""
        self._requested[gap] = resume

    async def requested(self) -> tuple[str, ...]:
        """Return the gaps that an operator wants to have dispatched now, first asked first."""
        return tuple(self._requested)

    async def resumptions(self) -> Mapping[str, int]:
        """Return those of which the last session is wanted, and `resume` of each."""
        return {gap: what for gap, what in self._requested.items() if what is not None}

    async def request_done(self, gap: str) -> None:
        """Forget an operator's wish; quiet when there is none."""
        self._requested.pop(gap, None)

    def _of(self, gap: str) -> list[Record]:
        return [each for each in self._records.values() if each.dispatch.gap.id == gap]

    def _active(self, dispatch_id: str) -> Record:
        record = self._records.get(dispatch_id)
        if record is None:
            raise Refused(f"the ledger has no dispatch {dispatch_id}")
        if not record.state.is_active:
            raise Refused(f"dispatch {dispatch_id} is {record.state} and cannot change")
        return record


class MemoryJournal:
    """Twin of the journal: keeps the reflections, each once.

    While `trouble` is not empty, nothing can be written or read, and that is the reason given.
    """

    def __init__(self) -> None:
        self.kept: dict[str, Reflection] = {}
        self.trouble = ""

    @property
    def reflections(self) -> tuple[Reflection, ...]:
        """What was recorded, oldest first."""
        return tuple(self.kept.values())

    def _answer(self) -> None:
        if self.trouble:
            raise Unavailable(self.trouble)

    async def record(self, reflection: Reflection) -> None:
        self._answer()
        self.kept.setdefault(reflection.dispatch, reflection)

    async def correct(self, reflection: Reflection) -> None:
        self._answer()
        if known := self.kept.get(reflection.dispatch):
            self.kept[reflection.dispatch] = _put_right(known, reflection)

    async def remembered(self, dispatch_ids: Sequence[str]) -> Mapping[str, Remembered]:
        """Return how dispatches ended, of those that were recorded."""
        self._answer()
        asked = (self.kept[one] for one in dispatch_ids if one in self.kept)
        return {
            one.dispatch: Remembered(
                Outcome(one.outcome, "as its reflection tells", one.cause),
                timedelta(seconds=one.duration_s),
                one.pull_number,
            )
            for one in asked
        }

    async def experience(self, today: date) -> Experience:
        self._answer()
        return experience(map(Outcomes.told_by, self.reflections), today)

    async def lessons(self, gap: Gap, limit: int = 5) -> tuple[str, ...]:
        """Return at most `limit` sentences on failures that bear on `gap` (behaviour R7)."""
        self._answer()
        failures = [r for r in self.reflections[::-1] if r.outcome.outcome_class == "failure"]
        own = [r for r in failures if r.gap == gap.id]
        others = [r for r in failures if r.gap != gap.id]
        domain = [r for r in others if domain_of(r.gap) == gap.domain]
        causes = {r.cause for r in own} - {None, Cause.UNKNOWN}
        alike = [r for r in others if r.cause in causes]
        sized = [r for r in others if r.effort == gap.effort != Effort.UNKNOWN]
        told: dict[tuple[str, OutcomeKind, Cause | None], str] = {}
        for r in chain(own, domain, alike, sized):
            because = f" ({r.cause})" if r.cause is not None else ""
            text = f"{r.gap} ended {r.outcome}{because} after {r.duration_s} s"
            told.setdefault((r.gap, r.outcome, r.cause), text)
        return tuple(told.values())[: max(limit, 0)]


def _put_right(known: Reflection, corrected: Reflection) -> Reflection:
    return replace(
        known,
        outcome=corrected.outcome,
        cause=corrected.cause,
        pull_number=corrected.pull_number,
    )


class MemoryManager:
    """Twin of a service manager: keeps what it was told, in the words of sd_notify.

    `watchdog` is how long it waits for a sign of life. While `is_deaf` it takes nothing.
    """

    def __init__(self, watchdog: timedelta | None = None) -> None:
        self.watchdog = watchdog
        self.told: list[str] = []
        self.is_deaf = False

    def ready(self) -> bool:
        return self._took("READY=1")

    def alive(self) -> bool:
        return self._took("WATCHDOG=1")

    def status(self, line: str) -> bool:
        return self._took(f"STATUS={on_one_line(line)}")

    def reloading(self) -> bool:
        return self._took("RELOADING=1")

    def stopping(self) -> bool:
        return self._took("STOPPING=1")

    def extend(self, span: timedelta) -> bool:
        return self._took(f"EXTEND_TIMEOUT_USEC={span // timedelta(microseconds=1)}")

    def _took(self, news: str) -> bool:
        if not self.is_deaf:
            self.told.append(news)
        return not self.is_deaf
