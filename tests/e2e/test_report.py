"""The night's account: on one screen for people, whole for programs (behaviour C10, C7)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.cli.report import instant_of
from chump_orchestrator.core.brakes import Fuse, fingerprint
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind, PullState
from chump_orchestrator.core.records import DispatchState, Parked, Pause, Record, Settlement
from chump_orchestrator.core.routing import Route
from tests.builders import a_dispatch, a_gap, a_pull
from tests.e2e.cli_repository import Repository
from tests.e2e.projects import Make, gaps
from tests.e2e.test_terminal import on_a_terminal, without_style

HOUR = timedelta(hours=1)

SHIPPED = Outcome(OutcomeKind.SHIPPED, "pull request 412 merged")
KILLED = Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)


class Night:
    """A ledger in which a night is written down, hour by hour before now."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.now = HostClock().now()
        self._count = 0

    async def runs(self, gap: str, hours_ago: float = 1, *, backend: str = "claude") -> Record:
        self._count += 1
        at = self.now - hours_ago * HOUR
        dispatch = a_dispatch(
            f"{gap.lower()}-{self._count}",
            gap=a_gap(gap, title=f"about {gap}"),
            route=Route(backend),
            created_at=at,
        )
        await self.ledger.add(dispatch)
        record = Record(dispatch, DispatchState.RUNNING, pid=4711, launched_at=at)
        await self.ledger.update(dispatch.id, record)
        return record

    async def ended(
        self,
        gap: str,
        outcome: Outcome,
        hours_ago: float = 2,
        *,
        backend: str = "claude",
        parked: bool = False,
        pull: Any = None,
        cost_usd: float | None = None,
    ) -> str:
        """Write down a dispatch that took half an hour, and ended so long ago."""
        record = await self.runs(gap, hours_ago + 0.5, backend=backend)
        end = self.now - hours_ago * HOUR
        done = Exit(code=0, active=HOUR / 2)
        exited = replace(
            record, state=DispatchState.EXITED, exit=done, exited_at=end, pull=pull, pull_since=end
        )
        dispatch = record.dispatch
        await self.ledger.update(dispatch.id, exited)
        reason = f"{outcome.kind} ({outcome.reason}); attempt 1 of 1 failed"
        held = Parked(gap, reason, fingerprint(dispatch.gap), end) if parked else None
        await self.ledger.settle(
            dispatch.id,
            Settlement(
                outcome, end, None, held, progress=False, siblings=0, cost_usd=cost_usd, tokens=None
            ),
        )
        return dispatch.id


async def a_night(ledger: SqliteLedger) -> None:
    night = Night(ledger)
    merged = replace(a_pull(PullState.MERGED), url="https://forge.example/o/r/pull/412")
    await night.ended("OLD-1", SHIPPED, 20)
    await night.ended("A-1", KILLED, 9, cost_usd=0.25)
    await night.ended("A-1", SHIPPED, 8, pull=merged, cost_usd=1.5)
    await night.ended("A-2", KILLED, 7, parked=True, backend="codex")
    await night.ended("A-3", Outcome(OutcomeKind.CANCELLED, "stopped by an operator"), 6)
    stalled = Outcome(OutcomeKind.STALLED, "pull request 412 open for 1 day without a merge")
    await night.ended("A-4", stalled, 5, pull=a_pull())


def test_c10_a_night_is_told_on_one_screen(repository: Repository) -> None:
    """Behaviour C10."""
    repository.write(".chump/orchestrator.toml", "consent = true\n")
    repository.in_ledger(a_night)

    said = repository.say("report", "--since", "12h")

    assert said.code == 0
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) <= 24
    assert "1 shipped, 2 failed, 2 waiting for you, 0 running, 2h 30m of work, $1.75" in lines[0]
    rows = {tuple(line.split()[:3]): line for line in lines}
    assert rows["A-1", "#412", "30m"].endswith(
        "$1.50  about A-1 https://forge.example/o/r/pull/412"
    )
    assert rows["A-2", "1", "killed"].endswith("exit-code  exit code 7")
    assert rows["A-3", "1", "cancelled"].endswith("stopped by an operator")
    assert rows["A-2", "parked", "retry"].endswith("killed (exit code 7); attempt 1 of 1 failed")
    assert rows["A-4", "pull", "review"].endswith("#412 is open, checks none")
    assert rows["claude", "4", "1"].split() == ["claude", "4", "1", "2", "2h", "00m", "-", "$1.75"]
    assert rows["codex", "1", "0"].split() == ["codex", "1", "0", "1", "30m", "00s", "-", "-"]
    assert rows["in", "all", "5"].split()[2:] == ["5", "1", "3", "2h", "30m", "-", "$1.75"]
    assert "OLD-1" not in said.out


def test_c10_programs_are_told_all_of_it(repository: Repository) -> None:
    """Behaviour C10, C1: with the version of the schema."""
    repository.write(".chump/orchestrator.toml", "consent = true\n")
    repository.in_ledger(a_night)

    told = repository.say("report", "--json").json()

    assert told["schema_version"] == 1
    assert list(told) == [
        "schema_version",
        "since",
        "until",
        "shipped",
        "failed",
        "other",
        "waiting",
        "running",
        "spent",
        "backends",
        "budget",
    ]
    (shipped,) = told["shipped"]
    assert shipped | {"ended_at": "", "dispatch": ""} == {
        "gap": "A-1",
        "title": "about A-1",
        "dispatch": "",
        "attempts": 2,
        "outcome": "shipped",
        "cause": None,
        "reason": "pull request 412 merged",
        "pull": 412,
        "url": "https://forge.example/o/r/pull/412",
        "backend": "claude",
        "duration_s": 1800.0,
        "cost_usd": 1.5,
        "tokens": None,
        "ended_at": "",
    }
    assert [(one["gap"], one["cause"], one["pull"]) for one in told["failed"]] == [
        ("A-4", None, 412),
        ("A-2", "exit-code", None),
    ]
    assert [one["gap"] for one in told["other"]] == ["A-3"]
    assert [(one["kind"], one["gap"], one["remedy"]) for one in told["waiting"]] == [
        ("parked", "A-2", "retry A-2"),
        ("pull", "A-4", "review and merge it"),
    ]
    assert told["spent"] == {
        "dispatches": 5,
        "shipped": 1,
        "failed": 3,
        "work_s": 9000.0,
        "cost_usd": 1.75,
        "tokens": None,
    }
    assert [one["backend"] for one in told["backends"]] == ["claude", "codex"]
    span = datetime.fromisoformat(told["until"]) - datetime.fromisoformat(told["since"])
    assert span == 12 * HOUR


def test_a_report_of_nothing_is_one_line(repository: Repository) -> None:
    repository.write(".chump/orchestrator.toml", "consent = true\n")

    said = repository.say("report")

    assert said.code == 0
    assert said.out.endswith(
        "12h 00m: 0 shipped, 0 failed, 0 waiting for you, 0 running, 0s of work\n"
    )


def test_what_keeps_everything_waiting_stands_first(repository: Repository) -> None:
    """Consent that nobody gave, and a pause, an operator's or the fuse's."""

    async def paused(ledger: SqliteLedger) -> None:
        await ledger.set_pause(Pause("operator", "lunch", HostClock().now()))

    async def blown(ledger: SqliteLedger) -> None:
        await ledger.set_pause(None)
        await ledger.set_fuse(Fuse(cause=Cause.AUTH, blown_until=HostClock().now()))

    repository.in_ledger(paused)
    first = repository.say("report", "--json").json()["waiting"]
    repository.in_ledger(blown)
    second = repository.say("report", "--json").json()["waiting"]

    assert [(one["kind"], one["remedy"]) for one in first] == [
        ("consent", "init --yes"),
        ("paused", "resume"),
    ]
    assert first[0]["what"] == "nobody has agreed to unattended agents of claude"
    assert first[1]["what"] == "paused by operator: lunch"
    assert second[1]["what"].endswith("after a row of failures: auth")


def test_a_backend_that_asks_by_itself_needs_no_consent(repository: Repository) -> None:
    repository.write(
        ".chump/orchestrator.toml", '[backend]\nuse = "custom"\n[backend.custom]\nargv = ["x"]\n'
    )

    assert repository.say("report", "--json").json()["waiting"] == []


def test_a_routing_table_that_cannot_be_used_waits_for_a_person(repository: Repository) -> None:
    repository.write("docs/dispatch/routing.yaml", "routes: 7\n")

    (one,) = repository.say("report", "--json").json()["waiting"]

    assert one["kind"] == "settings"
    assert "routing.yaml" in one["what"]


def test_agents_at_work_are_told_and_those_that_ended_unseen_apart(repository: Repository) -> None:
    """C7: without a daemon the ledger says running of an agent that has ended since."""
    repository.write(".chump/orchestrator.toml", "consent = true\n")

    async def two(ledger: SqliteLedger) -> None:
        night = Night(ledger)
        for gap in ("A-1", "A-2"):
            await night.runs(gap, 2)

    repository.in_ledger(two)
    folder = repository.state / "d" / "a-1-1"
    folder.mkdir(parents=True)
    with a_shim_of(folder):
        told = repository.say("report", "--json").json()

    (running,) = told["running"]
    assert (running["gap"], running["backend"], running["state"]) == ("A-1", "claude", "running")
    assert 7200 <= running["elapsed_s"] < 7300
    (waiting,) = told["waiting"]
    assert (waiting["kind"], waiting["gap"], waiting["remedy"]) == ("unsettled", "A-2", "run")


class a_shim_of:  # noqa: N801 - read as a phrase
    """Holds the lock by which a shim is known to live."""

    def __init__(self, folder: Any) -> None:
        self._file = folder / "lock"

    def __enter__(self) -> None:
        import fcntl  # noqa: PLC0415 - of this one alone

        self._lock = self._file.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._lock.close()


def test_more_than_fits_on_a_screen_is_counted_and_shown_when_asked_for(
    repository: Repository,
) -> None:
    async def many(ledger: SqliteLedger) -> None:
        night = Night(ledger)
        for number in range(30):
            await night.ended(f"A-{number}", KILLED, 3, parked=True)

    repository.write(".chump/orchestrator.toml", "consent = true\n")
    repository.in_ledger(many)

    short, whole = repository.say("report").out, repository.say("report", "--all").out

    assert len(short.splitlines()) <= 26
    assert short.count("... 22 more; --all shows them") == 2
    assert "more; --all" not in whole
    assert sum(1 for line in whole.splitlines() if line.startswith("A-")) == 60


def test_titles_and_reasons_cannot_move_the_terminal(repository: Repository) -> None:
    async def hostile(ledger: SqliteLedger) -> None:
        night = Night(ledger)
        await night.ended("A-1", Outcome(OutcomeKind.KILLED, "a\x1b[2Jb\nFORGED c", Cause.UNKNOWN))

    repository.in_ledger(hostile)

    said = repository.say("report")

    assert "\x1b" not in said.out
    assert [line for line in said.out.splitlines() if line.startswith("FORGED")] == []


def test_on_a_terminal_its_tables_fit(repository: Repository) -> None:
    repository.write(".chump/orchestrator.toml", "consent = true\n")
    repository.in_ledger(a_night)

    code, written = on_a_terminal(repository.root, "report", columns=80)

    shown = without_style(written)
    assert code == 0
    assert "NOT SHIPPED" in shown
    assert max(map(len, shown.splitlines()[1:])) <= 80
    assert "https://forge.example/o/r/pull/412" in shown


def test_the_ledger_is_left_as_it_was(repository: Repository) -> None:
    repository.in_ledger(a_night)
    before = {p: p.read_bytes() for p in repository.state.rglob("*") if p.is_file()}

    repository.say("report")

    after = {p: p.read_bytes() for p in repository.state.rglob("*") if p.is_file()}
    assert {p.name for p in after} - {p.name for p in before} <= {"ledger.db-shm", "ledger.db-wal"}
    assert after[repository.state / "ledger.db"] == before[repository.state / "ledger.db"]


@pytest.fixture
def in_a_place_with_summer_time() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "CET-1CEST,M3.5.0,M10.5.0/3"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


NOON = datetime(2026, 4, 27, 12, 0, tzinfo=UTC)  # 14:00 of the local summer


@pytest.mark.usefixtures("in_a_place_with_summer_time")
@pytest.mark.parametrize(
    ("text", "now", "instant"),
    [
        ("12h", NOON, datetime(2026, 4, 27, 0, 0, tzinfo=UTC)),
        ("90m", NOON, datetime(2026, 4, 27, 10, 30, tzinfo=UTC)),
        ("22:00", NOON, datetime(2026, 4, 26, 20, 0, tzinfo=UTC)),
        ("7:30", NOON, datetime(2026, 4, 27, 5, 30, tzinfo=UTC)),
        ("14:00", NOON, datetime(2026, 4, 26, 12, 0, tzinfo=UTC)),
        ("2026-04-26", NOON, datetime(2026, 4, 25, 22, 0, tzinfo=UTC)),
        ("2026-04-26T23:15", NOON, datetime(2026, 4, 26, 21, 15, tzinfo=UTC)),
        ("2026-04-26T23:15Z", NOON, datetime(2026, 4, 26, 23, 15, tzinfo=UTC)),
        # The clock was put forward in the night between.
        (
            "22:00",
            datetime(2026, 3, 29, 6, 0, tzinfo=UTC),
            datetime(2026, 3, 28, 21, 0, tzinfo=UTC),
        ),
    ],
)
def test_a_beginning_can_be_said_in_several_ways(
    text: str, now: datetime, instant: datetime
) -> None:
    assert instant_of(text, now) == instant


@pytest.mark.parametrize(
    "text", ["", "x", "25:00", "12:60", "0s", "-1h", "2099-01-01", "1e9h", "99999999999d", "🕛"]
)
def test_a_beginning_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        instant_of(text, NOON)


def test_c7_a_night_is_told_without_a_daemon_and_with_one(make: Make) -> None:
    """Behaviour C7: from the real program, after a run and with kept work."""
    project = make(gaps("A-1", "A-2"), "ship() if gap == 'A-1' else (open('w', 'w'), sys.exit(7))")
    project.program("run", "--once")

    told = project.json("report")

    assert [one["gap"] for one in told["shipped"]] == ["A-1"]
    assert [(one["gap"], one["reason"]) for one in told["failed"]] == [("A-2", "exit code 7")]
    waiting = {one["kind"]: one for one in told["waiting"]}
    assert waiting.keys() == {"parked", "salvage"}
    assert waiting["salvage"]["gap"] == "A-2"
    assert project.program(*waiting["salvage"]["remedy"].split()).returncode == 0
    assert told["spent"]["work_s"] > 0
    assert [one["backend"] for one in told["backends"]] == ["custom"]

    project.start()
    project.eventually(lambda: project.program("status").returncode == 0)
    again = project.json("report")

    assert again["failed"] == told["failed"]
