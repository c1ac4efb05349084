"""What every ledger promises of outcomes that a later merge puts right (behaviour P5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.core.brakes import History
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.corrections import Correction, correction
from chump_orchestrator.core.dispatch import Resumed, Workspace
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import DispatchState, Parked, Record, Settlement
from chump_orchestrator.testing import MemoryLedger
from tests.builders import NOW, a_dispatch, a_gap, a_pull, a_reflection

DAY = timedelta(days=1)
RED = Outcome(OutcomeKind.CI_FAILED, "pull request 412 has had failing checks", Cause.UNKNOWN)
MERGED = a_pull(PullState.MERGED)

Open = Callable[[], AbstractAsyncContextManager[Ledger]]


class StoppedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Hand out a way to open a ledger, of the kind that the test is run against."""
    kept = MemoryLedger()

    @asynccontextmanager
    async def in_sqlite() -> AsyncIterator[Ledger]:
        async with await SqliteLedger.open(tmp_path / "ledger.db", clock=StoppedClock()) as ledger:
            yield ledger

    @asynccontextmanager
    async def in_memory() -> AsyncIterator[Ledger]:
        yield kept

    return in_sqlite if request.param == "sqlite" else in_memory


async def settled(
    ledger: Ledger, dispatch_id: str = "infra-1-a", outcome: Outcome = RED, gap: str = "INFRA-1"
) -> None:
    """Carry a dispatch with an open request to its end, its gap parked, a reflection waiting."""
    dispatch = a_dispatch(dispatch_id, gap=a_gap(gap))
    running = Record(
        dispatch,
        DispatchState.RUNNING,
        workspace=Workspace("/w/x", f"claude/{gap.lower()}", "b" * 40),
        launched_at=NOW,
        pull=a_pull(PullState.OPEN),
    )
    await ledger.add(dispatch)
    await ledger.update(dispatch_id, running)
    reflection = a_reflection(
        dispatch_id, gap=gap, outcome=outcome.kind, cause=outcome.cause, tail=("ERROR x",)
    )
    parked = Parked(gap, "ci_failed", "f", NOW)
    ended_at = NOW + timedelta(minutes=30)
    await ledger.settle(
        dispatch_id, Settlement(outcome, ended_at, reflection, parked, progress=False, siblings=2)
    )


def put_right(record: Record, *, ships: bool = True) -> Correction:
    return correction(record, MERGED, NOW + DAY, task_class="", ships=ships)


async def test_a_merge_makes_a_success_of_a_failure_and_of_all_that_followed(opened: Open) -> None:
    async with opened() as ledger:
        await settled(ledger)
        (before,) = await ledger.late(NOW)
        assert await ledger.correct("infra-1-a", put_right(before))

    async with opened() as ledger:
        assert await ledger.records() == (
            replace(
                before,
                outcome=Outcome(
                    OutcomeKind.SHIPPED,
                    "pull request 412 merged, after it had counted as ci_failed",
                ),
                pull=MERGED,
                corrected_at=NOW + DAY,
                corrected_from=OutcomeKind.CI_FAILED,
            ),
        )
        assert await ledger.shipped() == {"INFRA-1": date(2026, 4, 28)}
        assert await ledger.parked() == ()
        assert await ledger.history("INFRA-1") == History(failures=0, refusals=0, sessions=0)
        assert await ledger.late(NOW) == ()


async def test_a_request_that_another_dispatch_has_taken_over_is_no_longer_asked_about(
    opened: Open,
) -> None:
    """Its merge ships that one; two successes would count for one request otherwise."""
    async with opened() as ledger:
        await settled(ledger)
        assert len(await ledger.late(NOW)) == 1
        taken_over = Resumed("infra-1-a", "0f4dfc29", NOW, 412, "c" * 40, 1)
        await ledger.add(a_dispatch("infra-1-b", gap=a_gap("INFRA-1"), resumed=taken_over))
        (while_it_works, corrected) = (await ledger.late(NOW), False)
        if before := await ledger.records():
            corrected = await ledger.correct("infra-1-a", put_right(before[0]))
        await ledger.abort("infra-1-b", "nobody wanted it", NOW)

        assert (while_it_works, corrected) == ((), False)
        assert [one.dispatch.id for one in await ledger.late(NOW)] == ["infra-1-a"]


async def test_it_is_done_once_however_often_it_is_tried(opened: Open) -> None:
    async with opened() as ledger:
        await settled(ledger)
        (before,) = await ledger.late(NOW)
        assert await ledger.correct("infra-1-a", put_right(before))
        await ledger.correction_delivered("infra-1-a")
        after = await ledger.records()

        assert not await ledger.correct("infra-1-a", put_right(before))
        assert not await ledger.correct("nobody", put_right(before))

        assert await ledger.records() == after
        assert await ledger.corrections() == ()


async def test_what_the_journal_is_to_be_told_waits_until_it_is_delivered(opened: Open) -> None:
    """And a reflection that was not delivered before is delivered as it is now."""
    async with opened() as ledger:
        await settled(ledger)
        (before,) = await ledger.late(NOW)
        await ledger.correct("infra-1-a", put_right(before))

    async with opened() as ledger:
        (told,) = await ledger.corrections()
        (first,) = await ledger.outbox()
        assert (told.outcome, told.cause, told.pull_number) == (OutcomeKind.SHIPPED, None, 412)
        assert (first.outcome, first.cause, first.tail) == (OutcomeKind.SHIPPED, None, ("ERROR x",))
        assert (told.ended_at, told.duration_s) == (before.ended_at, 1800)

        await ledger.correction_delivered("infra-1-a")
        assert await ledger.corrections() == ()
        assert len(await ledger.outbox()) == 1


async def test_a_gap_that_asks_for_other_work_by_now_is_not_shipped_by_it(opened: Open) -> None:
    async with opened() as ledger:
        await settled(ledger)
        (before,) = await ledger.late(NOW)
        assert await ledger.correct("infra-1-a", put_right(before, ships=False))

        assert await ledger.shipped() == {}
        assert [one.gap for one in await ledger.parked()] == ["INFRA-1"]


async def test_what_a_later_attempt_has_shipped_keeps_its_day(opened: Open) -> None:
    async with opened() as ledger:
        await settled(ledger)
        await settled(ledger, "infra-1-b", Outcome(OutcomeKind.SHIPPED, "merged"))
        await ledger.confirm_shipped(["INFRA-1"])
        (before,) = await ledger.late(NOW)
        await ledger.correct("infra-1-a", put_right(before))

        assert await ledger.shipped() == {"INFRA-1": date(2026, 4, 27)}
        assert await ledger.confirmed() == {"INFRA-1"}


@pytest.mark.parametrize("kind", list(OutcomeKind))
async def test_only_what_ended_without_a_merge_may_be_corrected(
    opened: Open, kind: OutcomeKind
) -> None:
    may_be = kind in ("ci_failed", "stalled", "killed", "cancelled")
    async with opened() as ledger:
        await settled(ledger, outcome=Outcome(kind, "so it was"))
        (record,) = await ledger.records()

        assert len(await ledger.late(NOW)) == may_be
        assert await ledger.correct("infra-1-a", put_right(record)) is may_be


async def test_what_is_still_under_way_is_not_corrected(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        (record,) = await ledger.records()

        assert await ledger.late(NOW) == ()
        assert not await ledger.correct("infra-1-a", put_right(record))


async def test_only_those_that_ended_lately_are_named(opened: Open) -> None:
    async with opened() as ledger:
        await settled(ledger)

        assert len(await ledger.late(NOW + timedelta(minutes=30))) == 1
        assert await ledger.late(NOW + timedelta(minutes=31)) == ()


async def test_what_is_seen_of_a_request_after_its_end_is_kept(opened: Open) -> None:
    closed = a_pull(PullState.CLOSED)
    async with opened() as ledger:
        await settled(ledger)
        await settled(ledger, "cog-1-a", Outcome(OutcomeKind.SHIPPED, "merged"), "COG-1")
        for dispatch in ("infra-1-a", "cog-1-a"):
            await ledger.sighted(dispatch, closed)

        states = [record.pull and record.pull.state for record in await ledger.records()]
        assert states == [PullState.CLOSED, PullState.OPEN]
