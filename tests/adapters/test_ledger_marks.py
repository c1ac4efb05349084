"""What the ledger keeps in mind of gaps: never older than what was written."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.sqlite import Result, Work
from chump_orchestrator.core.corrections import Correction
from chump_orchestrator.core.dispatch import Dispatch, Resumed
from chump_orchestrator.core.outcome import Outcome, OutcomeKind, PullState
from chump_orchestrator.core.records import DispatchState, Parked, Record, Settlement
from tests.builders import NOW, a_dispatch, a_pull, a_reflection

DAY = NOW.astimezone(UTC).date()
PARKED = Parked("INFRA-1", "two attempts failed", "f", NOW)
KILLED = Outcome(OutcomeKind.KILLED, "exit code 7")
SHIPPED = Outcome(OutcomeKind.SHIPPED, "pull request 4 merged")


class StoppedClock:
    """A clock that shows one instant for ever."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


class CountedLedger(SqliteLedger):
    """Counts how often its file is read, and lets something happen after that."""

    looks = 0
    afterwards: Callable[[], Awaitable[None]] | None = None

    async def _look(self, work: Work[Result]) -> Result:
        self.looks += 1
        found = await super()._look(work)
        then, self.afterwards = self.afterwards, None
        if then is not None:
            await then()
        return found


async def marks(ledger: SqliteLedger) -> tuple[object, ...]:
    """Return all of it."""
    return (
        await ledger.parked(),
        dict(await ledger.shipped()),
        await ledger.confirmed(),
        await ledger.requested(),
        dict(await ledger.resumptions()),
    )


def settlement(outcome: Outcome, **fields: object) -> Settlement:
    told = {"reflection": None, "parked": None, "progress": False, "siblings": 0} | fields
    return Settlement(outcome=outcome, ended_at=NOW, **told)  # type: ignore[arg-type]


async def begin(ledger: SqliteLedger, dispatch: Dispatch) -> None:
    """Put a dispatch on record whose agent runs."""
    await ledger.add(dispatch)
    running = Record(dispatch, DispatchState.RUNNING, pid=7, launched_at=NOW)
    await ledger.update(dispatch.id, running)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


async def test_what_was_read_is_read_once(path: Path) -> None:
    async with await CountedLedger.open(path, clock=StoppedClock()) as ledger:
        await ledger.park(PARKED)
        first = await marks(ledger)
        looks = ledger.looks
        await begin(ledger, a_dispatch())
        await ledger.tidied("another")
        await ledger.set_meta("name", "value")

        assert await marks(ledger) == first == ((PARKED,), {}, frozenset(), (), {})
        assert (looks, ledger.looks) == (1, 1)


async def test_a_write_of_one_s_own_shows_at_once(path: Path) -> None:
    """Each of those that change it, with what was kept in mind before."""
    former = a_dispatch("infra-1-a")
    later = a_dispatch("infra-1-b", attempt=2, resumed=Resumed(former.id, "", NOW))
    async with await SqliteLedger.open(path, clock=StoppedClock()) as ledger:
        seen = [await marks(ledger)]

        async def after(write: Awaitable[object]) -> None:
            await write
            seen.append(await marks(ledger))

        await after(ledger.request_dispatch("INFRA-1", resume=0))
        await after(ledger.request_dispatch("INFRA-2"))
        await after(ledger.request_done("INFRA-2"))
        await after(ledger.park(PARKED))
        await begin(ledger, former)
        await after(
            ledger.settle(former.id, settlement(KILLED, reflection=a_reflection(former.id)))
        )
        put_right = Correction(SHIPPED, NOW, a_pull(PullState.MERGED), a_reflection(former.id))
        await after(ledger.correct(former.id, put_right))
        await after(ledger.confirm_shipped(["INFRA-1"]))
        await after(ledger.free("INFRA-1", NOW))
        await after(ledger.add(later))

    nothing: tuple[object, ...] = ((), {}, frozenset(), (), {})
    wanted: tuple[object, ...] = ((), {}, frozenset(), ("INFRA-1",), {"INFRA-1": 0})
    assert seen == [
        nothing,
        wanted,
        ((), {}, frozenset(), ("INFRA-1", "INFRA-2"), {"INFRA-1": 0}),
        wanted,
        ((PARKED,), *wanted[1:]),
        wanted,
        ((), {"INFRA-1": DAY}, frozenset(), *wanted[3:]),
        ((), {"INFRA-1": DAY}, frozenset({"INFRA-1"}), *wanted[3:]),
        wanted,
        nothing,
    ]


async def test_what_was_read_before_a_write_is_not_kept_after_it(path: Path) -> None:
    async with await CountedLedger.open(path, clock=StoppedClock()) as ledger:

        async def park() -> None:
            await ledger.park(PARKED)

        ledger.afterwards = park
        before = await ledger.parked()

        assert (before, await ledger.parked()) == ((), (PARKED,))


async def test_a_write_that_was_given_up_counts_as_one(path: Path) -> None:
    async with await SqliteLedger.open(path, clock=StoppedClock()) as ledger:
        await marks(ledger)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ledger.park(PARKED)

        assert await ledger.parked() == (PARKED,)


async def test_who_only_reads_keeps_nothing_in_mind(path: Path) -> None:
    """Another process writes, and does not tell."""
    async with await SqliteLedger.open(path, clock=StoppedClock()):
        pass
    async with await SqliteLedger.open(path, clock=StoppedClock(), readonly=True) as ledger:
        before = await marks(ledger)
        with closing(sqlite3.connect(path)) as other:
            other.execute("INSERT INTO requested (gap, at) VALUES ('INFRA-1', '')")
            other.commit()

        assert (before[3], await ledger.requested()) == ((), ("INFRA-1",))


async def test_what_it_gives_cannot_be_changed(path: Path) -> None:
    async with await SqliteLedger.open(path, clock=StoppedClock()) as ledger:
        with pytest.raises(TypeError):
            (await ledger.shipped())["INFRA-1"] = DAY  # type: ignore[index]
