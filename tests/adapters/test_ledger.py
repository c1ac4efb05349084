"""The ledger's file: what survives kills, restarts, damage, and other versions."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.ledger_rows import (
    DEADLINES,
    EXIT,
    FUSE,
    GAP,
    NAMES,
    PAUSE,
    PLACE,
    PULL,
    REFLECTION,
    ROUTE,
    SHIPMENT,
    WORKSPACE,
    Codec,
    columns_of,
    instant,
    record_of,
)
from chump_orchestrator.adapters.ledger_schema import MIGRATIONS
from chump_orchestrator.adapters.sqlite import Corrupt
from chump_orchestrator.core.brakes import Fuse
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.dispatch import Deadlines, Dispatch, Names, Workspace
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import Effort, Gap, Place, Priority
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind, PullRequest
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.shipping import Shipment
from tests.adapters.troubles import Locker, a_full_disk
from tests.builders import NOW, a_dispatch, a_gap

ROOT = Path(__file__).parent.parent.parent
GOLDEN = ROOT / "tests" / "golden" / "ledger_v1.sql"


class StoppedClock:
    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0


async def opened(path: Path, *, readonly: bool = False) -> SqliteLedger:
    return await SqliteLedger.open(path, clock=StoppedClock(), readonly=readonly)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def golden(path: Path) -> Path:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(GOLDEN.read_text("utf-8"))
    return path


def a_reflection(dispatch: str = "infra-1-a") -> Reflection:
    return Reflection(
        dispatch=dispatch,
        gap="INFRA-1",
        priority=Priority.P1,
        effort=Effort.S,
        task_class="",
        outcome=OutcomeKind.KILLED,
        cause=Cause.EXIT_CODE,
        duration=timedelta(seconds=180),
        pull_number=None,
        backend="claude",
        model="",
        provider_pfx="",
        siblings=1,
        tail=("ERROR: one",),
        cost_usd=0.25,
        ended_at=NOW,
    )


def a_settlement(dispatch: str = "infra-1-a", **changes: Any) -> Settlement:
    settlement = Settlement(
        outcome=Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE),
        ended_at=NOW,
        reflection=a_reflection(dispatch),
        parked=Parked("INFRA-1", "no more", "f", NOW),
        progress=False,
        siblings=1,
    )
    return replace(settlement, **changes)


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def schema(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Names and words of everything in a database, whatever its layout."""
    found = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {name: sql.replace("(", " ( ").replace(")", " ) ").split() for name, sql in found}


async def test_everything_is_there_after_a_restart(path: Path) -> None:
    fuse = Fuse(blown_until=NOW, cause=Cause.AUTH)
    async with await opened(path) as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        await ledger.settle("infra-1-a", a_settlement())
        await ledger.set_pause(Pause("an operator", "lunch", NOW))
        await ledger.set_fuse(fuse)
        await ledger.set_meta("epoch", "4")
        await ledger.request_dispatch("INFRA-2")
        before = await ledger.records()

    async with await opened(path) as ledger:
        assert await ledger.records() == before
        assert await ledger.outbox() == (a_reflection(),)
        assert await ledger.parked() == (Parked("INFRA-1", "no more", "f", NOW),)
        assert await ledger.pause() == Pause("an operator", "lunch", NOW)
        assert await ledger.fuse() == fuse
        assert await ledger.meta("epoch") == "4"
        assert await ledger.requested() == ("INFRA-2",)


async def test_of_many_settlements_at_once_one_counts(path: Path) -> None:
    refused: list[str] = []

    async def settle(ledger: SqliteLedger) -> None:
        try:
            await ledger.settle("infra-1-a", a_settlement())
        except Refused as error:
            refused.append(str(error))

    async with await opened(path) as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(settle, ledger)

        assert len(refused) == 9
        assert await ledger.outbox() == (a_reflection(),)


async def test_of_many_dispatches_of_a_gap_at_once_one_is_taken(path: Path) -> None:
    refused: list[str] = []

    async def add(ledger: SqliteLedger, number: int) -> None:
        try:
            await ledger.add(a_dispatch(f"infra-1-{number}"))
        except Refused as error:
            refused.append(str(error))

    async with await opened(path) as ledger:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(add, ledger, number)

        assert len(refused) == 9
        assert len(await ledger.records(active=True)) == 1


async def test_the_file_itself_keeps_a_second_active_dispatch_out(golden: Path) -> None:
    columns = columns_of(Record(a_dispatch(gap=a_gap("COG-2")), DispatchState.PLANNED))
    names, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
    async with await opened(golden):
        pass  # brought to the schema of this version

    with closing(sqlite3.connect(golden)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(f"INSERT INTO dispatches ({names}) VALUES ({marks})", columns)


async def test_a_cancelled_supervisor_leaves_its_settlement_behind(path: Path) -> None:
    async with await opened(path) as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ledger.settle("infra-1-a", a_settlement())

        assert await ledger.outbox() == (a_reflection(),)


async def test_thirty_two_writers_share_their_commits(path: Path) -> None:
    """The rates are printed, not judged."""

    async def write(ledger: SqliteLedger, writer: int) -> None:
        for number in range(10):
            gap = a_gap(f"INFRA-{writer}-{number}")
            await ledger.add(a_dispatch(f"d-{writer}-{number}", gap=gap))

    async with await opened(path) as ledger:
        began = perf_counter()
        await write(ledger, 99)
        alone = 10 / (perf_counter() - began)
        began = perf_counter()
        async with anyio.create_task_group() as group:
            for writer in range(32):
                group.start_soon(write, ledger, writer)
        together = 320 / (perf_counter() - began)
        print(f"a second: {alone:.0f} alone, {together:.0f} by 32: {together / alone:.1f} times")

        assert len(await ledger.records()) == 330


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
import anyio
from tests.adapters.test_ledger import a_settlement, opened
from tests.builders import a_dispatch, a_gap

async def write(ledger, run, writer):
    number = 0
    while True:
        name = f"{run}-{writer}-{number}"
        await ledger.add(a_dispatch(f"d-{name}", gap=a_gap(f"G-{name}")))
        await ledger.settle(f"d-{name}", replace(a_settlement(f"d-{name}"), parked=None))
        print(f"d-{name}", flush=True)
        number += 1

async def main(path, run):
    async with await opened(path) as ledger, anyio.create_task_group() as group:
        for writer in range(8):
            group.start_soon(write, ledger, run, writer)

anyio.run(main, Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_storm_of_kills_loses_nothing_that_was_acknowledged(path: Path) -> None:
    """Twenty times SIGKILL among eight writers."""
    draw = random.Random(20)
    acknowledged: list[str] = []
    for run in range(20):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(run)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        heard = [child.stdout.readline() for _ in range(draw.randrange(1, 60))]
        child.kill()
        heard += child.communicate()[0].splitlines(keepends=True)
        acknowledged += (line.strip() for line in heard if line.endswith("\n"))

    async with await opened(path) as ledger:
        records = {record.dispatch.id: record.state for record in await ledger.records()}
        delivered = [reflection.dispatch for reflection in await ledger.outbox()]
    settled = [name for name, state in records.items() if state is DispatchState.SETTLED]
    assert len(acknowledged) >= 20
    assert set(acknowledged) <= set(settled)
    assert sorted(delivered) == sorted(settled)


async def test_another_programs_lock_is_waited_for(path: Path) -> None:
    """Fault 46."""
    async with await opened(path) as ledger:
        locker = Locker(path)

        async def let_go_soon() -> None:
            await anyio.sleep(1)
            locker.let_go()

        async with anyio.create_task_group() as group:
            group.start_soon(let_go_soon)
            await ledger.add(a_dispatch())

        assert len(await ledger.records()) == 1


async def test_reading_goes_on_while_another_program_writes(path: Path) -> None:
    """Invariant I5: `status` answers, whatever holds the writer up."""
    async with await opened(path) as ledger:
        await ledger.add(a_dispatch())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            assert len(await ledger.records()) == 1


async def test_a_full_disk_drops_no_outcome(path: Path) -> None:
    """Fault 47."""
    large = replace(a_reflection(), tail=("x" * 1_000_000,))
    async with await opened(path) as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        with a_full_disk(300_000), pytest.raises(Unavailable, match=r"ledger\.db: the disk"):
            await ledger.settle("infra-1-a", a_settlement(reflection=large))
        hindered = [record.state for record in await ledger.records()]
        await ledger.settle("infra-1-a", a_settlement(reflection=large))

        assert hindered == [DispatchState.PLANNED]
        assert await ledger.outbox() == (large,)


async def test_a_newer_ledger_is_the_operators_affair(golden: Path) -> None:
    change(golden, f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    content = golden.read_bytes()

    for readonly in (False, True):
        with pytest.raises(ConfigError, match=r"ledger\.db has schema .*: upgrade"):
            await opened(golden, readonly=readonly)
    assert golden.read_bytes() == content


@pytest.mark.parametrize("readonly", [False, True])
async def test_garbage_is_corrupt_and_can_be_put_aside(path: Path, *, readonly: bool) -> None:
    """Fault 48."""
    path.parent.mkdir()
    path.write_bytes(b"garbage" * 1000)

    with pytest.raises(Corrupt, match=r"ledger\.db is damaged"):
        await opened(path, readonly=readonly)
    aside = await SqliteLedger.put_aside(path, clock=StoppedClock())

    assert aside.name == "ledger.db.corrupt-20260427T120000.000000Z"
    assert aside.read_bytes() == b"garbage" * 1000
    async with await opened(path) as ledger:
        assert await ledger.records() == ()


async def test_a_torn_ledger_is_corrupt(path: Path) -> None:
    """Fault 48."""
    async with await opened(path) as ledger:
        for number in range(50):
            await ledger.add(a_dispatch(f"d-{number}", gap=a_gap(f"INFRA-{number}")))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(Corrupt):
        await opened(path)


async def test_damage_in_the_middle_is_noticed_at_once(path: Path) -> None:
    """Fault 48: where nothing looks before the row is needed."""
    async with await opened(path) as ledger:
        for number in range(50):
            await ledger.add(a_dispatch(f"d-{number}", gap=a_gap(f"INFRA-{number}")))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    path.write_bytes(content)

    with pytest.raises(Corrupt, match=r"ledger\.db is damaged"):
        await opened(path)


async def test_a_row_that_cannot_be_read_is_corrupt(golden: Path) -> None:
    change(golden, "UPDATE dispatches SET state = 'musing', route = '[]' WHERE gap = 'COG-2'")

    async with await opened(golden) as ledger:
        with pytest.raises(Corrupt, match="cannot be read"):
            await ledger.records()
        assert len(await ledger.latest(9, "INFRA-1")) == 1


async def test_reading_a_missing_ledger_finds_it_empty_and_makes_nothing(path: Path) -> None:
    """Behaviour C7: commands read without a daemon."""
    async with await opened(path, readonly=True) as ledger:
        assert await ledger.records() == ()
        assert await ledger.pause() is None
        assert not path.parent.exists()


async def test_reading_an_empty_file_finds_an_empty_ledger(path: Path) -> None:
    path.parent.mkdir()
    path.touch()

    async with await opened(path, readonly=True) as ledger:
        assert await ledger.parked() == ()
    assert path.read_bytes() == b""


async def test_a_command_reads_what_the_daemon_writes_meanwhile(path: Path) -> None:
    """Behaviour C7."""
    async with await opened(path, readonly=True) as command, await opened(path) as daemon:
        await daemon.add(a_dispatch())

        assert len(await command.records()) == 1
        with pytest.raises(Refused, match=r"ledger\.db is open for reading only"):
            await command.set_pause(None)


async def test_the_schema_that_was_released_as_the_first_never_changes() -> None:
    with (
        closing(sqlite3.connect(":memory:")) as released,
        closing(sqlite3.connect(":memory:")) as made,
    ):
        released.executescript(GOLDEN.read_text("utf-8"))
        for statement in MIGRATIONS[0]:
            made.execute(statement)

        assert schema(made) == schema(released)


@pytest.mark.parametrize("readonly", [False, True])
async def test_a_ledger_of_schema_1_can_be_read(golden: Path, *, readonly: bool) -> None:
    names = Names("claude/infra-1", "infra-1")
    gap = Gap(
        id="INFRA-1",
        title="a title",
        priority=Priority.P1,
        effort=Effort.S,
        depends_on=("INFRA-0",),
        deadline=timedelta(minutes=90),
        place=Place("docs/gaps.yaml", 3, 5),
    )
    async with await opened(golden, readonly=readonly) as ledger:
        first, second = await ledger.records()
        assert first == Record(
            Dispatch(
                id="infra-1-260427120000-abcdef",
                gap=gap,
                attempt=1,
                route=Route("claude", why="route 1"),
                deadlines=Deadlines(soft=timedelta(minutes=90)),
                names=names,
                created_at=NOW,
            ),
            DispatchState.SETTLED,
            workspace=Workspace(
                "/srv/repo/.claude/worktrees/infra-1", "claude/infra-1", "0123456789" * 4
            ),
            pid=4711,
            launched_at=NOW + timedelta(seconds=1.5),
            exit=Exit(
                code=7,
                active=timedelta(seconds=60.25),
                peak_rss_bytes=2**20,
                cpu=timedelta(seconds=1.5),
            ),
            exited_at=NOW + timedelta(seconds=62),
            outcome=Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE),
            ended_at=NOW + timedelta(seconds=63),
            siblings=1,
            cost_usd=0.25,
            tokens=1200,
        )
        assert second.dispatch.gap == Gap("COG-2")
        assert second.dispatch.route == Route("codex")
        history = await ledger.history("INFRA-1")
        assert (history.failures, history.usd) == (1, 0.25)
        told = [(one.gap, one.effort, one.cost_usd) for one in await ledger.chronicle()]
        assert told == [("INFRA-1", Effort.S, 0.25), ("COG-2", Effort.UNKNOWN, None)]
        assert [reflection.dispatch for reflection in await ledger.outbox()] == [first.dispatch.id]
        assert [parked.until for parked in await ledger.parked()] == [NOW + timedelta(seconds=73)]
        assert await ledger.shipped() == {"INFRA-0": date(2026, 4, 26)}
        assert await ledger.confirmed() == frozenset({"INFRA-0"})
        assert await ledger.pause() == Pause("an operator", "lunch", NOW)
        assert (await ledger.fuse()).wait == timedelta(minutes=15)
        assert await ledger.requested() == ("INFRA-5",)
        assert await ledger.meta("epoch") == "3"


async def test_numbers_beyond_what_sqlite_holds_are_cut(path: Path) -> None:
    async with await opened(path) as ledger:
        await ledger.add(a_dispatch("infra-1-a"))
        await ledger.settle("infra-1-a", a_settlement(tokens=10**30))

        assert [record.tokens for record in await ledger.records()] == [2**63 - 1]


async def test_times_are_kept_in_utc_and_sort_as_text(path: Path) -> None:
    assert instant(NOW) == "2026-04-27T12:00:00.000000Z"
    assert instant(datetime.fromisoformat("2026-04-27T14:00:00+02:00")) == instant(NOW)
    with pytest.raises(ValueError, match="no time zone"):
        instant(NOW.replace(tzinfo=None))


CODECS: dict[type, Codec[Any]] = {
    Place: PLACE,
    Gap: GAP,
    Route: ROUTE,
    Deadlines: DEADLINES,
    Names: NAMES,
    Workspace: WORKSPACE,
    Exit: EXIT,
    PullRequest: PULL,
    Reflection: REFLECTION,
    Pause: PAUSE,
    Fuse: FUSE,
    Shipment: SHIPMENT,
}

st.register_type_strategy(datetime, st.datetimes(timezones=st.just(UTC)))
st.register_type_strategy(
    timedelta, st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=3650))
)
st.register_type_strategy(float, st.floats(allow_nan=False))
WHOLE = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("kind", list(CODECS))
def test_a_codec_knows_every_field(kind: type) -> None:
    assert list(CODECS[kind].forms) == [field.name for field in fields(kind)]


@pytest.mark.parametrize("kind", list(CODECS))
@given(data=st.data())
def test_values_come_back_as_they_were(kind: type, data: st.DataObject) -> None:
    value = data.draw(st.from_type(kind))
    codec = CODECS[kind]

    text = codec.dumps(value)

    assert codec.loads(text) == value
    assert codec.loads(text[:-1] + ',"of a later version":[1]}') == value
    assert text.isascii()
    assert text.startswith('{"v":1')


@given(
    st.builds(
        Record,
        pid=st.none() | WHOLE,
        siblings=st.none() | WHOLE,
        tokens=st.none() | WHOLE,
        dispatch=st.builds(Dispatch, attempt=WHOLE),
    )
)
def test_records_come_back_as_they_were(record: Record) -> None:
    columns = columns_of(record)
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        for statement in chain.from_iterable(MIGRATIONS):
            connection.execute(statement)
        names, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        connection.execute(f"INSERT INTO dispatches ({names}) VALUES ({marks})", columns)

        assert record_of(connection.execute("SELECT * FROM dispatches").fetchone()) == record


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"id":"A-1","effort":"huge"}', "{"])
def test_text_that_tells_of_no_gap_is_corrupt(text: str) -> None:
    with pytest.raises(Corrupt, match="a Gap that cannot be read"):
        GAP.loads(text)


async def test_attempts_in_brief_share_what_is_alike(tmp_path: Path) -> None:
    """A daemon keeps them in mind, and there are thousands."""
    routes = (Route("claude", "opus"), Route("codex"), Route("claude", "opus"))
    async with await SqliteLedger.open(tmp_path / "ledger.db", clock=StoppedClock()) as ledger:
        for number, route in enumerate(routes):
            gap = a_gap(f"INFRA-{number}")
            await ledger.add(a_dispatch(f"infra-{number}-a", gap=gap, route=route))

        first, second, third = [one.route for one in await ledger.chronicle()]

    assert (first, second) == routes[:2]
    assert third is first
