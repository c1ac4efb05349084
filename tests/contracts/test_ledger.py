"""What every ledger promises: the one in SQLite and its twin (`core.ports.Ledger`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.core.attempts import Attempt
from chump_orchestrator.core.brakes import Fuse, History
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Resumed, Workspace
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.core.gap import Effort, Place, Priority
from chump_orchestrator.core.outcome import (
    Checks,
    Exit,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
)
from chump_orchestrator.core.ports import Ledger
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.shipping import Shipment, Stage
from chump_orchestrator.core.testimony import Report, Usage
from chump_orchestrator.testing import MemoryLedger
from tests.builders import NOW, a_dispatch, a_gap

Open = Callable[[], AbstractAsyncContextManager[Ledger]]


A_REPORT = Report(
    session="0f4dfc29",
    model="large",
    usage=Usage(0.125, 2**53, 7),
    tool_calls=3,
    steps=12,
    activity="Bash",
    active_at=NOW + timedelta(microseconds=1),
    pull_number=412,
    answer="über\n412",
    failure="API Error: 529",
    aside="a wrapper's words",
    resets_at=NOW + timedelta(hours=3),
    is_stream=True,
)
"""Everything that an agent can tell."""


class StoppedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(params=["sqlite", "memory"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Hand out a way to open an empty ledger, of the kind that the test is run against."""

    @asynccontextmanager
    async def in_sqlite() -> AsyncIterator[Ledger]:
        async with await SqliteLedger.open(tmp_path / "ledger.db", clock=StoppedClock()) as ledger:
            yield ledger

    @asynccontextmanager
    async def in_memory() -> AsyncIterator[Ledger]:
        yield MemoryLedger()

    return in_sqlite if request.param == "sqlite" else in_memory


FAILED = Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)
SHIPPED = Outcome(OutcomeKind.SHIPPED, "pull request 4 merged")
REFUSED = Outcome(OutcomeKind.RACE_ABANDONED, "held by another")
NOT_SPAWNED = Outcome(OutcomeKind.SPAWN_FAILED, "no program named claude", Cause.SPAWN)
CANCELLED = Outcome(OutcomeKind.CANCELLED, "stopped by an operator")
LOST = Outcome(OutcomeKind.LOST, "the shim was killed", Cause.LOST)


def a_settlement(outcome: Outcome = FAILED, **fields: Any) -> Settlement:
    defaults: dict[str, Any] = {
        "ended_at": NOW + timedelta(minutes=3),
        "reflection": None,
        "parked": None,
        "progress": False,
        "siblings": 0,
    }
    return Settlement(outcome=outcome, **(defaults | fields))


def a_reflection(dispatch: str = "infra-1-a", **fields: Any) -> Reflection:
    defaults: dict[str, Any] = {
        "gap": "INFRA-1",
        "priority": Priority.P1,
        "effort": Effort.S,
        "task_class": "",
        "outcome": OutcomeKind.KILLED,
        "cause": Cause.EXIT_CODE,
        "duration": timedelta(seconds=180),
        "pull_number": None,
        "backend": "claude",
        "model": "",
        "provider_pfx": "",
        "siblings": 1,
        "tail": ("ERROR: one", "panic: zwei"),
        "cost_usd": 0.25,
        "ended_at": NOW,
    }
    return Reflection(dispatch=dispatch, **(defaults | fields))


def parked(gap: str = "INFRA-1", **fields: Any) -> Parked:
    defaults: dict[str, Any] = {"reason": "two attempts failed", "fingerprint": "f", "since": NOW}
    return Parked(gap, **(defaults | fields))


async def attempt(ledger: Ledger, dispatch_id: str, settlement: Settlement) -> None:
    """Carry a dispatch of INFRA-1 from its plan to its end; one that was spawned ran."""
    dispatch = a_dispatch(dispatch_id)
    await ledger.add(dispatch)
    if settlement.outcome.kind not in (OutcomeKind.SPAWN_FAILED, OutcomeKind.RACE_ABANDONED):
        await ledger.update(
            dispatch_id, Record(dispatch, DispatchState.RUNNING, pid=7, launched_at=NOW)
        )
    await ledger.settle(dispatch_id, settlement)


async def test_a_dispatch_begins_planned(opened: Open) -> None:
    dispatch = a_dispatch()

    async with opened() as ledger:
        await ledger.add(dispatch)

        assert await ledger.records() == (Record(dispatch, DispatchState.PLANNED),)
        assert await ledger.attempts("INFRA-1") == 1


async def test_a_gap_has_one_active_dispatch_at_most(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.add(a_dispatch("infra-1-a"))

        with pytest.raises(Refused, match="INFRA-1 has an active dispatch already, infra-1-a"):
            await ledger.add(a_dispatch("infra-1-b"))
        await ledger.add(a_dispatch("infra-2-a", gap=a_gap("INFRA-2")))
        assert [r.dispatch.id for r in await ledger.records()] == ["infra-1-a", "infra-2-a"]


@pytest.mark.parametrize("state", [s for s in DispatchState if s.is_active])
async def test_every_active_state_keeps_a_second_dispatch_out(
    opened: Open, state: DispatchState
) -> None:
    async with opened() as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        await ledger.update("infra-1-a", Record(a_dispatch("infra-1-a"), state))

        with pytest.raises(Refused):
            await ledger.add(a_dispatch("infra-1-b"))


async def test_an_id_is_used_once(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement())

        with pytest.raises(Refused, match="infra-1-a is recorded already"):
            await ledger.add(a_dispatch("infra-1-a"))


async def test_the_next_dispatch_of_a_gap_follows_the_end_of_the_last(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement())
        await ledger.add(a_dispatch("infra-1-b"))
        await ledger.abort("infra-1-b", "no agent was started", NOW)
        await ledger.add(a_dispatch("infra-1-c"))

        assert await ledger.attempts("INFRA-1") == 3


async def test_everything_known_of_a_dispatch_comes_back_as_it_was(opened: Open) -> None:
    gap = a_gap(
        title="über\x00 \u2028 all",
        depends_on=("INFRA-2", "COG-009b"),
        closed_date=date(2026, 2, 28),
        deadline=timedelta(minutes=90),
        acceptance=("first", "second"),
        place=Place("docs/gaps.yaml", 12, 3),
    )
    dispatch = a_dispatch("infra-1-a", gap=gap, attempt=3)
    record = Record(
        dispatch,
        DispatchState.EXITED,
        workspace=Workspace("/somewhere/\udce4", "claude/infra-1", "0" * 40),
        pid=4711,
        launched_at=NOW + timedelta(microseconds=1),
        exit=Exit(code=0, active=timedelta(seconds=1.25), peak_rss_bytes=2**40),
        exited_at=NOW + timedelta(hours=1),
        pull=PullRequest("claude/infra-1", PullState.OPEN, NOW, 12, Checks.FAILING, "abc", "url"),
        pull_since=NOW,
        pull_since_active=timedelta(microseconds=1),
        checks_failed_since=NOW,
        siblings=2,
        cost_usd=1.5,
        tokens=12,
        report=A_REPORT,
        shipment=Shipment(Stage.OPENED, "c" * 40, "1 commit, 1 path", 7, "url"),
    )

    async with opened() as ledger:
        await ledger.add(dispatch)
        await ledger.update("infra-1-a", record)

        assert await ledger.records() == (record,)


async def test_only_an_active_dispatch_is_updated(opened: Open) -> None:
    running = Record(a_dispatch("infra-1-a"), DispatchState.RUNNING)

    async with opened() as ledger:
        with pytest.raises(Refused, match="no dispatch infra-1-a"):
            await ledger.update("infra-1-a", running)
        await attempt(ledger, "infra-1-a", a_settlement())
        before = await ledger.records()
        with pytest.raises(Refused, match="is done and cannot change"):
            await ledger.update("infra-1-a", running)
        assert await ledger.records() == before


@pytest.mark.parametrize(
    "record",
    [
        Record(a_dispatch("infra-1-a"), DispatchState.DONE),
        Record(a_dispatch("infra-1-a"), DispatchState.EXITED, outcome=SHIPPED),
        Record(a_dispatch("infra-1-b"), DispatchState.RUNNING),
    ],
)
async def test_an_update_ends_nothing_and_minds_its_dispatch(opened: Open, record: Record) -> None:
    async with opened() as ledger:
        await ledger.add(a_dispatch("infra-1-a"))

        with pytest.raises(Refused, match="infra-1-a"):
            await ledger.update("infra-1-a", record)


async def test_settling_stores_the_outcome_and_everything_that_follows(opened: Open) -> None:
    reflection = a_reflection()
    settlement = a_settlement(
        reflection=reflection, parked=parked(), siblings=2, cost_usd=0.5, tokens=77
    )
    dispatch = a_dispatch("infra-1-a")
    running = Record(dispatch, DispatchState.RUNNING, launched_at=NOW)

    async with opened() as ledger:
        await ledger.add(dispatch)
        await ledger.update("infra-1-a", running)
        await ledger.settle("infra-1-a", settlement)

        assert await ledger.records() == (
            replace(
                running,
                state=DispatchState.SETTLED,
                outcome=FAILED,
                ended_at=settlement.ended_at,
                siblings=2,
                cost_usd=0.5,
                tokens=77,
            ),
        )
        assert await ledger.outbox() == (reflection,)
        assert await ledger.parked() == (parked(),)


async def test_a_dispatch_is_settled_once(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(reflection=a_reflection()))
        before = await ledger.records()

        with pytest.raises(Refused, match=r"infra-1-a .*is settled and cannot change"):
            await ledger.settle(
                "infra-1-a", a_settlement(SHIPPED, reflection=a_reflection(), parked=parked())
            )
        with pytest.raises(Refused):
            await ledger.abort("infra-1-a", "too late", NOW)
        with pytest.raises(Refused, match="no dispatch"):
            await ledger.settle("infra-9-a", a_settlement())

        assert await ledger.records() == before
        assert await ledger.outbox() == (a_reflection(),)
        assert await ledger.parked() == ()
        assert await ledger.shipped() == {}


async def test_without_a_reflection_a_dispatch_is_done_at_once(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(NOT_SPAWNED, parked=parked()))

        assert [r.state for r in await ledger.records()] == [DispatchState.DONE]
        assert await ledger.outbox() == ()
        assert await ledger.parked() == (parked(),)


async def test_what_the_settlement_does_not_know_stays_as_it_was(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")

    async with opened() as ledger:
        await ledger.add(dispatch)
        await ledger.update(
            "infra-1-a", Record(dispatch, DispatchState.RUNNING, cost_usd=0.75, tokens=9)
        )
        await ledger.settle("infra-1-a", a_settlement(tokens=10))

        assert [(r.cost_usd, r.tokens) for r in await ledger.records()] == [(0.75, 10)]


async def test_what_an_agent_told_is_kept_as_it_was_last_told(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")
    early, late = Report(session="one"), replace(A_REPORT, answer="413")

    async with opened() as ledger:
        await ledger.add(dispatch)
        first = (await ledger.records())[0].report
        await ledger.update("infra-1-a", Record(dispatch, DispatchState.RUNNING, report=early))
        second = (await ledger.records())[0].report
        await ledger.settle("infra-1-a", a_settlement(report=late))
        third = (await ledger.records())[0].report

    assert (first, second, third) == (Report(), early, late)


async def test_a_settlement_without_a_report_leaves_the_one_that_is_there(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")

    async with opened() as ledger:
        await ledger.add(dispatch)
        await ledger.update("infra-1-a", Record(dispatch, DispatchState.RUNNING, report=A_REPORT))
        await ledger.settle("infra-1-a", a_settlement())

        assert [record.report for record in await ledger.records()] == [A_REPORT]


async def test_a_settlement_that_parks_nothing_frees_what_was_parked(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.park(parked(until=NOW))
        await attempt(ledger, "infra-1-a", a_settlement(CANCELLED))

        assert await ledger.parked() == ()


async def test_a_delivered_reflection_leaves_the_outbox_and_its_dispatch_is_done(
    opened: Open,
) -> None:
    async with opened() as ledger:
        for letter in "ab":
            reflection = a_reflection(f"infra-1-{letter}")
            await attempt(ledger, f"infra-1-{letter}", a_settlement(reflection=reflection))
        await ledger.delivered("infra-1-a")
        await ledger.delivered("infra-1-a")
        await ledger.delivered("unheard-of")

        assert await ledger.outbox() == (a_reflection("infra-1-b"),)
        states = [r.state for r in await ledger.records()]
        assert states == [DispatchState.DONE, DispatchState.SETTLED]


async def test_an_aborted_dispatch_has_no_outcome_and_nothing_to_deliver(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        await ledger.abort("infra-1-a", "died before the launch", NOW)

        assert await ledger.records() == (
            Record(a_dispatch("infra-1-a"), DispatchState.ABORTED, ended_at=NOW),
        )
        assert await ledger.outbox() == ()
        assert await ledger.history("INFRA-1") == History(0, 0, 0)


async def test_records_are_found_by_what_is_left_to_do(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement())
        await attempt(ledger, "infra-1-b", a_settlement())
        await ledger.tidied("infra-1-a")
        await ledger.tidied("infra-1-a")
        await ledger.add(a_dispatch("infra-1-c"))

        async def ids(*, active: bool = False, untidy: bool = False) -> list[str]:
            found = await ledger.records(active=active, untidy=untidy)
            return [record.dispatch.id for record in found]

        assert await ids() == ["infra-1-a", "infra-1-b", "infra-1-c"]
        assert await ids(active=True) == ["infra-1-c"]
        assert await ids(untidy=True) == ["infra-1-b"]
        assert await ids(active=True, untidy=True) == ["infra-1-b", "infra-1-c"]


async def test_when_dispatches_ended_is_told_of_those_on_record(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(ended_at=NOW + timedelta(hours=1)))
        await ledger.add(a_dispatch("infra-1-b"))
        await ledger.abort("infra-1-b", "no agent was ever started", NOW)
        await ledger.add(a_dispatch("infra-1-c"))
        await ledger.add(a_dispatch("cog-1-a", gap=a_gap("COG-1")))

        asked = ("infra-1-c", "infra-1-b", "infra-1-a", "infra-1-z")

        assert await ledger.ends(asked) == {
            "infra-1-a": NOW + timedelta(hours=1),
            "infra-1-b": NOW,
            "infra-1-c": None,
        }
        assert await ledger.ends(()) == {}


async def test_the_latest_come_first_of_one_gap_or_of_all(opened: Open) -> None:
    async with opened() as ledger:
        for letter in "abc":
            await attempt(ledger, f"infra-1-{letter}", a_settlement())
        await ledger.add(a_dispatch("cog-1-a", gap=a_gap("COG-1")))

        async def ids(limit: int, gap: str = "") -> list[str]:
            return [record.dispatch.id for record in await ledger.latest(limit, gap)]

        assert await ids(2) == ["cog-1-a", "infra-1-c"]
        assert await ids(2, "INFRA-1") == ["infra-1-c", "infra-1-b"]
        assert await ids(9, "INFRA-2") == []


@pytest.mark.parametrize(
    ("outcome", "counted"),
    [
        (FAILED, History(failures=1, refusals=0, sessions=1)),
        (LOST, History(failures=1, refusals=0, sessions=1)),
        (NOT_SPAWNED, History(failures=1, refusals=0, sessions=0)),
        (REFUSED, History(failures=0, refusals=1, sessions=0)),
        (CANCELLED, History(failures=0, refusals=0, sessions=0)),
        (SHIPPED, History(failures=0, refusals=0, sessions=1)),
    ],
)
async def test_what_counts_against_a_gap(opened: Open, outcome: Outcome, counted: History) -> None:
    """Behaviour X1, X2: failures, refused leases, and agents that were started."""
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(outcome))

        assert await ledger.history("INFRA-1") == counted
        assert await ledger.history("INFRA-2") == History(0, 0, 0)


async def test_a_failure_that_is_excused_does_not_count(opened: Open) -> None:
    """Behaviour A4: a missing program is no fault of the gap's."""
    async with opened() as ledger:
        excused = replace(a_settlement(NOT_SPAWNED), excused=True)
        await attempt(ledger, "infra-1-a", excused)

        assert await ledger.history("INFRA-1") == History(0, 0, 0)


async def test_a_running_agent_is_a_session_already(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")

    async with opened() as ledger:
        await ledger.add(dispatch)
        planned = await ledger.history("INFRA-1")
        await ledger.update("infra-1-a", Record(dispatch, DispatchState.RUNNING, launched_at=NOW))

        assert planned == History(0, 0, 0)
        assert await ledger.history("INFRA-1") == History(0, 0, 1)


async def test_accepted_progress_begins_the_count_of_sessions_anew(opened: Open) -> None:
    """Behaviour X2."""
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement())
        await attempt(ledger, "infra-1-b", a_settlement(progress=True))
        after_progress = await ledger.history("INFRA-1")
        await attempt(ledger, "infra-1-c", a_settlement())

        assert after_progress == History(failures=2, refusals=0, sessions=0)
        assert await ledger.history("INFRA-1") == History(failures=3, refusals=0, sessions=1)


async def test_freeing_a_gap_begins_every_count_anew(opened: Open) -> None:
    """Behaviour X2."""
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(parked=parked()))
        await attempt(ledger, "infra-1-b", a_settlement(REFUSED, parked=parked()))
        await attempt(ledger, "infra-1-c", a_settlement(SHIPPED))
        await ledger.park(parked())
        await ledger.park(parked("INFRA-2"))
        await ledger.free("INFRA-1", NOW)

        assert await ledger.history("INFRA-1") == History(0, 0, 0)
        assert await ledger.parked() == (parked("INFRA-2"),)
        assert await ledger.shipped() == {}
        assert await ledger.attempts("INFRA-1") == 3


async def test_a_dispatch_that_runs_while_its_gap_is_freed_counts_afterwards(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")

    async with opened() as ledger:
        await ledger.add(dispatch)
        await ledger.update("infra-1-a", Record(dispatch, DispatchState.RUNNING, launched_at=NOW))
        await ledger.free("INFRA-1", NOW)
        await ledger.settle("infra-1-a", a_settlement())

        assert await ledger.history("INFRA-1") == History(failures=1, refusals=0, sessions=1)


async def test_a_gap_is_parked_with_its_latest_reason(opened: Open) -> None:
    backoff = parked(reason="again later", until=NOW + timedelta(seconds=10))

    async with opened() as ledger:
        await ledger.park(backoff)
        waiting = await ledger.parked()
        await ledger.park(parked(reason="no more"))

        assert waiting == (backoff,)
        assert await ledger.parked() == (parked(reason="no more"),)


async def test_a_shipped_gap_is_kept_with_its_day_until_it_is_freed(opened: Open) -> None:
    """Behaviour B6: it counts as done whatever its entry says."""
    late = datetime(2026, 4, 27, 23, 30, tzinfo=UTC).astimezone()

    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(SHIPPED, ended_at=late))
        await ledger.confirm_shipped(["INFRA-1", "INFRA-2"])

        assert await ledger.shipped() == {"INFRA-1": date(2026, 4, 27)}
        assert await ledger.confirmed() == frozenset({"INFRA-1"})
        await ledger.free("INFRA-1", NOW)
        assert await ledger.shipped() == {}
        assert await ledger.confirmed() == frozenset()


async def test_a_gap_that_is_shipped_again_awaits_the_backlogs_word_again(opened: Open) -> None:
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(SHIPPED))
        await ledger.confirm_shipped(["INFRA-1"])
        await attempt(ledger, "infra-1-b", a_settlement(SHIPPED))

        assert await ledger.confirmed() == frozenset()
        assert list(await ledger.shipped()) == ["INFRA-1"]


async def test_a_pause_lasts_until_it_is_lifted(opened: Open) -> None:
    """Behaviour C7."""
    pause = Pause("an operator", "über lunch", NOW)

    async with opened() as ledger:
        assert await ledger.pause() is None
        await ledger.set_pause(pause)
        assert await ledger.pause() == pause
        await ledger.set_pause(None)
        assert await ledger.pause() is None


async def test_the_fuse_is_kept(opened: Open) -> None:
    """Behaviour X5."""
    fuse = Fuse(
        failures=((Cause.AUTH, NOW), (Cause.UNKNOWN, NOW)),
        cause=Cause.AUTH,
        blown_until=NOW,
        wait=timedelta(minutes=15),
        trial="infra-1-a",
    )

    async with opened() as ledger:
        assert await ledger.fuse() == Fuse()
        await ledger.set_fuse(fuse)
        assert await ledger.fuse() == fuse


async def test_texts_are_kept_by_key(opened: Open) -> None:
    async with opened() as ledger:
        assert await ledger.meta("epoch") is None
        await ledger.set_meta("epoch", "1")
        await ledger.set_meta("epoch", "2")
        assert await ledger.meta("epoch") == "2"


async def test_an_operators_requests_wait_in_the_order_of_asking(opened: Open) -> None:
    """Behaviour X2: `retry` dispatches now."""
    async with opened() as ledger:
        for gap in ("INFRA-2", "INFRA-1", "INFRA-2", "INFRA-3"):
            await ledger.request_dispatch(gap)
        await ledger.request_done("INFRA-1")
        await ledger.request_done("INFRA-9")

        assert await ledger.requested() == ("INFRA-2", "INFRA-3")


async def test_every_dispatch_is_told_in_brief(opened: Open) -> None:
    """What a daemon keeps in mind of all that went before (behaviour G5, X3)."""
    codex = a_dispatch("infra-2-a", gap=a_gap("INFRA-2", effort=Effort.L), route=Route("codex"))

    async with opened() as ledger:
        exited = NOW + timedelta(minutes=2)
        await attempt(ledger, "infra-1-a", a_settlement(cost_usd=0.5, tokens=70))
        await ledger.free("INFRA-1", NOW)
        excused = a_settlement(NOT_SPAWNED, excused=True)
        await attempt(ledger, "infra-1-b", excused)
        await ledger.add(codex)
        ended = Record(codex, DispatchState.EXITED, launched_at=NOW, exited_at=exited)
        await ledger.update("infra-2-a", ended)
        under_way = (await ledger.chronicle())[-1]
        await ledger.settle("infra-2-a", a_settlement(SHIPPED))
        first, second, third = await ledger.chronicle()

    at = NOW + timedelta(minutes=3)
    a_first = Attempt(
        "infra-1-a", "INFRA-1", Effort.S, Route("claude"), True, at, FAILED.kind, FAILED.cause
    )
    assert first == replace(a_first, cost_usd=0.5, tokens=70, is_freed=True)
    assert (second.kind, second.is_excused, second.is_freed) == (NOT_SPAWNED.kind, True, False)
    assert (third.route, third.effort, third.ended_at) == (Route("codex"), Effort.L, exited)
    assert (third.kind, third.is_excused) == (SHIPPED.kind, False)
    assert (under_way.had_agent, under_way.kind, under_way.ended_at) == (True, None, None)


async def test_what_was_spent_counts_from_the_last_accepted_progress_on(opened: Open) -> None:
    """Behaviour X2: of the dispatch with progress, what came after it."""
    async with opened() as ledger:
        await attempt(ledger, "infra-1-a", a_settlement(cost_usd=4.0, unaccepted_usd=4.0))
        before = await ledger.history("INFRA-1")
        accepted = a_settlement(cost_usd=3.0, unaccepted_usd=1.0, progress=True)
        await attempt(ledger, "infra-1-b", accepted)
        since = await ledger.history("INFRA-1")
        await attempt(ledger, "infra-1-c", a_settlement(cost_usd=2.0, unaccepted_usd=2.0))
        await attempt(ledger, "infra-1-d", a_settlement())
        after = await ledger.history("INFRA-1")
        await ledger.free("INFRA-1", NOW)

        assert (before.usd, since.usd, after.usd) == (4.0, 1.0, 3.0)
        assert (await ledger.history("INFRA-1")).usd == 0.0


async def test_what_an_agent_has_told_is_not_spent_before_it_is_settled(opened: Open) -> None:
    dispatch = a_dispatch("infra-1-a")

    async with opened() as ledger:
        await ledger.add(dispatch)
        told = Record(dispatch, DispatchState.EXITED, launched_at=NOW, cost_usd=9.0)
        await ledger.update("infra-1-a", told)

        assert (await ledger.history("INFRA-1")).usd == 0.0
        assert await ledger.resumptions() == {}


async def test_what_is_to_be_gone_on_with_is_told_apart_and_the_last_word_counts(
    opened: Open,
) -> None:
    async with opened() as ledger:
        await ledger.request_dispatch("INFRA-1", resume=0)
        await ledger.request_dispatch("INFRA-2")
        await ledger.request_dispatch("INFRA-3", resume=2)
        await ledger.request_dispatch("INFRA-3")
        await ledger.request_dispatch("INFRA-2", resume=1)

        assert await ledger.requested() == ("INFRA-1", "INFRA-2", "INFRA-3")
        assert await ledger.resumptions() == {"INFRA-1": 0, "INFRA-2": 1}


A_RESUMPTION = Resumed("infra-1-a", "0f4dfc29", NOW - timedelta(hours=2), 412, "c" * 40, 2)


async def test_an_attempt_that_goes_on_with_another_says_so_and_fulfils_the_wish(
    opened: Open,
) -> None:
    """In one step: a daemon that dies in between starts it twice, or never."""
    async with opened() as ledger:
        await ledger.request_dispatch("INFRA-1", resume=0)
        await ledger.add(a_dispatch("infra-1-b", resumed=A_RESUMPTION))

        (found,) = await ledger.records(active=True)
        assert found.dispatch.resumed == A_RESUMPTION
        assert found.dispatch.session == "0f4dfc29"
        assert await ledger.requested() == ()


async def test_a_new_attempt_leaves_a_wish_to_whoever_grants_it(opened: Open) -> None:
    async with opened() as ledger:
        await ledger.request_dispatch("INFRA-1", resume=0)
        await ledger.add(a_dispatch())

        assert await ledger.resumptions() == {"INFRA-1": 0}


async def test_an_end_can_ask_for_the_session_to_be_gone_on_with(opened: Open) -> None:
    async with opened() as ledger:
        dispatch = a_dispatch()
        await ledger.add(dispatch)
        outcome = Outcome(OutcomeKind.CI_FAILED, "failing checks")
        parked = Parked("INFRA-1", "failing checks", "f", NOW)
        ended = Settlement(outcome, NOW, None, parked, progress=True, siblings=0, resume=1)

        await ledger.settle(dispatch.id, ended)

        assert await ledger.resumptions() == {"INFRA-1": 1}
        assert [one.gap for one in await ledger.parked()] == ["INFRA-1"]
