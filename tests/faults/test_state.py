"""Databases that are locked, full, damaged or of another time: cases 46 to 49 of the catalogue."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.projects import gaps
from tests.faults import databases
from tests.faults.conftest import Begin
from tests.faults.databases import fill, locked, read_only, small_disk
from tests.faults.rewired import settle_rewired, start_rewired
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

LOCK_S = float(os.environ.get("FAULT_LOCK_S", "6"))
"""How long another process holds a database; a statement waits for 5 s."""

WAITS = """\
while not os.path.exists(here + "/go"): time.sleep(0.02)
ship()
"""
"""An agent that ships as soon as it may."""

REPEATS = "from chump_orchestrator.adapters import journal\njournal._firsts = lambda _, all: all\n"
"""The journal takes each reflection for a new one."""

HERE = f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"


def books(trial: Trial) -> tuple[Path, Path]:
    """Return the two databases of the journal."""
    return trial.root / "sessions" / "chump_memory.db", trial.root / ".chump" / "state.db"


def ledger(trial: Trial) -> Path:
    return trial.state / "ledger.db"


def go(trial: Trial) -> None:
    (trial.evidence / "go").touch()


def detach(trial: Trial) -> None:
    """End the daemon and leave its agents."""
    end(trial, signal.SIGUSR1)


def end(trial: Trial, number: signal.Signals = signal.SIGTERM) -> int:
    assert trial.daemon is not None
    trial.daemon.send_signal(number)
    return trial.daemon.wait(60)


def answers(trial: Trial) -> dict[str, Any]:
    """Return the status that the daemon itself gives (promise I5)."""
    told: dict[str, Any] = trial.json("status")
    assert told["daemon"] is not None
    return told


def try_twice(trial: Trial, base: str) -> None:
    """Have gaps tried again once, that long after a failure."""
    settings = trial.root / ".chump" / "orchestrator.toml"
    retry = f'max_attempts = 2\nbase = "{base}"'
    settings.write_text(settings.read_text().replace("max_attempts = 1", retry))


# 46: another process holds the databases


def test_case_46_everything_is_locked_at_the_start(begin: Begin) -> None:
    trial = begin("ANY-1")
    for command in ("pause", "resume"):
        assert trial.program(command).returncode == 0

    with locked(ledger(trial), *books(trial), whole=True):
        daemon = trial.start("--once", **trial.env)
        wait_until(lambda: "ledger.unavailable" in trial.log())
        time.sleep(max(LOCK_S - 5, 0))
        assert daemon.poll() is None
        assert trial.starts() == []

    assert daemon.wait(60) == 0
    trial.check()


def test_case_46_the_ledger_is_locked_when_a_gap_is_to_be_launched(begin: Begin) -> None:
    trial = begin()
    daemon = trial.start(**trial.env)
    wait_until(lambda: "dispatch.settled" in trial.log())

    with locked(ledger(trial)):
        trial.write_backlog(gaps(BYSTANDER, "ANY-1"))
        wait_until(lambda: "dispatching.postponed" in trial.log())
        time.sleep(max(LOCK_S - 5, 0))
        answers(trial)
        assert "locked" in trial.log()
        assert trial.starts("ANY-1") == []

    wait_until(lambda: trial.log().count("dispatch.settled") == 2)
    assert end(trial) == 0
    assert daemon.returncode == 0
    trial.check()


def test_case_46_everything_is_locked_when_agents_end(begin: Begin) -> None:
    trial = begin("ANY-1", agent=WAITS)
    daemon = trial.start("--once", **trial.env)
    wait_until(lambda: len(trial.starts()) == 2)

    with locked(ledger(trial), *books(trial)):
        go(trial)
        wait_until(lambda: "ledger.unavailable" in trial.log())
        time.sleep(max(LOCK_S - 5, 0))
        answers(trial)
        assert "dispatch.settled" not in trial.log()

    assert daemon.wait(60) == 0
    trial.check()


def _routed(trial: Trial) -> int:
    """Count the rows of the second database, none before its table is there."""
    with contextlib.suppress(sqlite3.Error):
        return trial._counted(".chump/state.db", "routing_outcomes", "gap_id").total()
    return 0


def _with_one_book_locked(trial: Trial, change: str) -> None:
    """Ship while the second of two databases cannot be written, and the first can."""
    start_rewired(trial, change)
    wait_until(lambda: len(trial.starts()) == 2)
    with locked(books(trial)[1]):
        go(trial)
        wait_until(lambda: trial.log().count("journal.unavailable") >= 2)
    wait_until(lambda: _routed(trial) >= 2)
    assert end(trial) == 0


def test_case_46_one_of_the_journals_databases_is_locked(begin: Begin) -> None:
    trial = begin("ANY-1", agent=WAITS)

    _with_one_book_locked(trial, "")

    trial.check()


def test_case_46_control_without_its_note_a_reflection_is_delivered_twice(begin: Begin) -> None:
    trial = begin("ANY-1", agent=WAITS)

    _with_one_book_locked(trial, REPEATS)

    with pytest.raises(AssertionError, match="I2"):
        trial.check()


# 47: the disk is full

FILLING = (
    HERE
    + """\
from pathlib import Path
from tests.faults import crashing
from tests.faults.databases import fill
def full():
    fill(Path({place!r}))
    Path({told!r}).touch()
crashing.act_at({at!r}, full)
"""
)

FULL_AT = (
    "d1-before",
    "d3-before",
    "d4-before",
    "d5-before",
    "d6-before",
    "d7-before",
    "d7-outcome-before",
    "d9-before",
    "d10-before",
)


@pytest.mark.root
@pytest.mark.parametrize("at", FULL_AT)
def test_case_47_the_disk_is_full_at_a_write(begin: Begin, at: str) -> None:
    trial = begin("ANY-1", agent='commit(gap + "-made", gap)\nship()')
    try_twice(trial, "1s")
    with small_disk(trial.state):
        told = trial.evidence / "full"
        change = FILLING.format(place=str(trial.state), told=str(told), at=at)
        daemon = start_rewired(trial, change)
        wait_until(told.exists)
        time.sleep(1.5)
        begun = len(trial.starts())
        answers(trial)
        time.sleep(0.5)
        assert len(trial.starts()) == begun

        (trial.state / "filler").unlink()

        wait_until(lambda: trial.log().count("dispatch.settled") == 2)
        assert end(trial) == 0
        assert daemon.returncode == 0
        trial.settle()
        trial.check()


FILLS = """\
import tempfile
def fills():
    with open(os.path.join(tempfile.gettempdir(), "filler"), "wb", buffering=0) as filler:
        for size in (65536, 4096, 1):
            try:
                while filler.write(b"x" * size): pass
            except OSError:
                pass
if gap == "ANY-1":
    leave("left.txt", "precious")
    fills()
    print("after\\n" * 100_000, flush=True)
    sys.exit(7)
ship()
"""


@pytest.mark.root
def test_case_47_an_agent_fills_the_disk_and_ends(begin: Begin) -> None:
    trial = begin("ANY-1", agent=FILLS)
    with small_disk(trial.state):
        daemon = trial.start(**trial.env)
        wait_until(lambda: len(trial.starts()) == 2)
        wait_until(lambda: list(trial.state.glob("d/*/tmp/filler")))
        wait_until(lambda: os.statvfs(trial.state).f_bavail == 0)
        time.sleep(2)
        answers(trial)

        for filler in trial.state.glob("d/*/tmp/filler"):
            filler.unlink()

        wait_until(lambda: trial.log().count("dispatch.settled") == 2)
        assert end(trial) == 0
        assert daemon.returncode == 0
        trial.check()


@pytest.mark.root
def test_case_47_nothing_is_started_on_a_full_disk(begin: Begin) -> None:
    trial = begin("ANY-1")
    with small_disk(trial.state):
        trial.program("pause")
        daemon = trial.start(**trial.env)
        wait_until(lambda: "daemon.started" in trial.log())
        fill(trial.state)
        trial.program("resume")
        wait_until(lambda: answers(trial)["daemon"]["state"] in ("paused", "running"))
        time.sleep(2)
        assert trial.starts() == []

        (trial.state / "filler").unlink()
        wait_until(lambda: trial.program("resume").returncode == 0)

        wait_until(lambda: trial.log().count("dispatch.settled") == 2)
        assert end(trial) == 0
        assert daemon.returncode == 0
        trial.check()


# 48: damaged, garbage, of a newer version, read-only, without its log


def _begun(trial: Trial) -> None:
    """Have one agent that waits, one that has shipped, and a daemon that was killed."""
    trial.start(**trial.env)
    wait_until(lambda: trial.starts("LIVE-1") and "dispatch.settled" in trial.log())
    wait_until(lambda: '"dispatch.settled"' in trial.log())
    time.sleep(0.3)
    end(trial, signal.SIGKILL)


LIVES = 'commit(gap + "-made", gap)\nif gap == "LIVE-1":\n    ' + WAITS.replace("\n", "\n    ")
LIVES += "\nelse:\n    ship()\n"


@pytest.mark.parametrize(
    "harm", [databases.garbage, databases.torn, databases.holed, databases.unreadable]
)
def test_case_48_a_damaged_ledger_is_put_aside_and_made_anew(
    begin: Begin, harm: Callable[[Path], None]
) -> None:
    trial = begin("LIVE-1", agent=LIVES)
    _begun(trial)
    harm(ledger(trial))
    said = trial.program("history")
    assert (said.returncode, "`run` moves it aside" in said.stderr) == (78, True)

    daemon = trial.start(**trial.env)
    wait_until(lambda: trial.log().count("daemon.started") == 2)

    told = answers(trial)
    (aside,) = [one for one in trial.state.glob("ledger.db.corrupt-*") if one.suffix[-4:] != "-wal"]
    assert told["daemon"]["state"] == "paused"
    assert told["pause"]["by"] == "recovery"
    assert str(aside) in told["pause"]["reason"]
    assert [one["gap"] for one in told["dispatches"]] == ["LIVE-1"]
    trial.write_backlog(gaps("LIVE-1", BYSTANDER, "LATE-1"))
    go(trial)
    wait_until(lambda: trial.outcomes().get("LIVE-1") == "shipped")
    assert trial.starts("LATE-1") == []
    assert trial.program("resume").returncode == 0
    wait_until(lambda: trial.outcomes().get("LATE-1") == "shipped")
    assert end(trial) == 0
    assert daemon.returncode == 0
    trial.check()
    assert [len(trial.starts(gap)) for gap in ("LIVE-1", BYSTANDER, "LATE-1")] == [1, 1, 1]


@pytest.mark.parametrize("harm", [databases.without_log, Path.unlink])
def test_case_48_what_a_ledger_has_lost_comes_back(
    begin: Begin, harm: Callable[[Path], None]
) -> None:
    trial = begin("LIVE-1", agent=LIVES)
    _begun(trial)
    databases.without_log(ledger(trial))
    harm(ledger(trial))
    go(trial)

    trial.settle()

    trial.check()
    assert trial.outcomes() == {"LIVE-1": "shipped", BYSTANDER: "shipped"}
    assert len(trial.starts()) == 2


def _rebuilt(trial: Trial, change: str) -> None:
    _begun(trial)
    databases.garbage(ledger(trial))
    start_rewired(trial, change)
    wait_until(lambda: trial.log().count("daemon.started") == 2)
    trial.program("resume")
    time.sleep(1)
    go(trial)
    wait_until(lambda: trial.outcomes().get("LIVE-1"))
    end(trial)
    trial.settle()


def test_case_48_control_without_its_note_a_reflection_is_delivered_again(begin: Begin) -> None:
    trial = begin("LIVE-1", agent=LIVES)

    _rebuilt(trial, REPEATS)

    with pytest.raises(AssertionError, match="I2"):
        trial.check()


NOT_REBUILT = """\
from chump_orchestrator.daemon import recovery
async def nothing(_world): pass
recovery.rebuild = nothing
"""


def test_case_48_control_without_rows_for_them_dispatches_are_begun_again(begin: Begin) -> None:
    trial = begin("LIVE-1", agent=LIVES)

    _rebuilt(trial, NOT_REBUILT)

    with pytest.raises(AssertionError, match=r"I1|I2"):
        trial.check()


def test_case_48_a_newer_ledger_is_left_as_it_is(begin: Begin) -> None:
    trial = begin("ANY-1")
    trial.settle()
    databases.newer(ledger(trial))
    before = ledger(trial).read_bytes()

    done = trial.program("run", "--once", **trial.env)

    assert (done.returncode, "upgrade chump-orchestrator" in done.stderr) == (78, True)
    assert ledger(trial).read_bytes() == before
    assert list(trial.state.glob("*corrupt*")) == []


@pytest.mark.root
def test_case_48_a_ledger_that_cannot_be_written_stops_the_start(begin: Begin) -> None:
    trial = begin("ANY-1")
    assert trial.program("pause").returncode == 0
    assert trial.program("resume").returncode == 0
    impatient = "from chump_orchestrator import premises\npremises.LEDGER_PATIENCE_S = 1.0\n"
    with read_only(ledger(trial)):
        assert settle_rewired(trial, impatient) == 1
        assert "ledger.db" in trial.log()
        assert trial.starts() == []

    trial.settle()

    trial.check()


@pytest.mark.parametrize("book", [0, 1])
@pytest.mark.parametrize("harm", [databases.garbage, databases.torn])
def test_case_48_a_damaged_database_of_the_journal_delays_its_rows(
    begin: Begin, book: int, harm: Callable[[Path], None]
) -> None:
    """Behaviour R6."""
    trial = begin("ANY-1", "LATER-1")
    trial.settle("--gap", "ANY-1")
    database = books(trial)[book]
    kept = database.read_bytes()
    assert not database.with_name(database.name + "-wal").exists()
    harm(database)

    trial.settle()

    assert trial.outcomes() == dict.fromkeys(("ANY-1", "LATER-1", BYSTANDER), "shipped")
    assert "journal.unavailable" in trial.log()
    with pytest.raises(AssertionError, match="I2"):
        _check_quietly(trial)
    database.write_bytes(kept)  # the operator has a copy
    trial.settle()
    trial.check()


def _check_quietly(trial: Trial) -> None:
    try:
        trial.check()
    except Exception as error:
        raise AssertionError(f"I2: {error}") from error


@pytest.mark.parametrize("book", [0, 1])
def test_case_48_a_newer_database_of_the_journal_is_written_all_the_same(
    begin: Begin, book: int
) -> None:
    """Behaviour R1: other tools own its version."""
    trial = begin("ANY-1", "LATER-1")
    trial.settle("--gap", "ANY-1")
    databases.newer(books(trial)[book])

    trial.settle()

    trial.check()


@pytest.mark.root
@pytest.mark.parametrize("book", [0, 1])
def test_case_48_a_database_of_the_journal_that_cannot_be_written_delays_its_rows(
    begin: Begin, book: int
) -> None:
    trial = begin("ANY-1", "LATER-1")
    trial.settle("--gap", "ANY-1")
    with read_only(books(trial)[book]):
        trial.settle("--gap", "LATER-1")
        assert "journal.unavailable" in trial.log()

    trial.settle()

    trial.check()


@pytest.mark.parametrize("book", [0, 1])
def test_case_48_a_database_of_the_journal_without_its_log_gets_further_rows(
    begin: Begin, book: int
) -> None:
    trial = begin("ANY-1", "LATER-1")
    trial.settle("--gap", "ANY-1")
    databases.without_log(books(trial)[book])

    trial.settle()

    trial.check()


# 49: the clock jumps by a day

JUMPS = """\
from datetime import timedelta
from pathlib import Path
from chump_orchestrator.adapters.host import HostClock
now = HostClock.now
def jumping(self):
    told = Path({file!r})
    return now(self) + timedelta(seconds=float(told.read_text() if told.exists() else "0"))
HostClock.now = jumping
"""
DAY_S = 86_400

TRIES_TWICE = """\
if gap == "AGAIN-1" and not os.path.exists(here + "/failed"):
    open(here + "/failed", "w").close()
    sys.exit(1)
while gap == "LIVE-1" and not os.path.exists(here + "/go"): time.sleep(0.02)
commit(gap + "-made", gap)
ship()
"""


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_case_49_the_clock_jumps_under_a_running_daemon(begin: Begin, jump_s: int) -> None:
    """Leases, backoffs, deadlines and history stay sane."""
    more = "[lessons]\nenabled = false\n"
    trial = begin("LIVE-1", "AGAIN-1", agent=TRIES_TWICE, slots=3, more=more)
    try_twice(trial, "3s")
    offset = trial.evidence / "offset"
    daemon = start_rewired(trial, JUMPS.format(file=str(offset)), "--once")
    wait_until(lambda: '"killed"' in trial.log())

    offset.write_text(str(jump_s))

    wait_until(lambda: len(trial.starts("AGAIN-1")) == 2)
    told = answers(trial)
    (live,) = [one for one in told["dispatches"] if one["gap"] == "LIVE-1"]
    assert (live["state"], live["overdue"]) == ("running", False)
    assert 0 <= live["elapsed_s"] < 120
    go(trial)
    assert daemon.wait(60) == 0
    trial.check()
    assert len(trial.starts("LIVE-1")) == 1
    for one in trial.json("history")["dispatches"]:
        assert 0 <= one["duration_s"] < DAY_S + 120
        assert 0 <= one["active_s"] < 120


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S])
def test_case_49_the_clock_jumps_while_no_daemon_runs(begin: Begin, jump_s: int) -> None:
    trial = begin("LIVE-1", agent=LIVES)
    trial.start(**trial.env)
    wait_until(lambda: trial.starts("LIVE-1") and "dispatch.settled" in trial.log())
    detach(trial)
    assert trial.program("pause", "for a while").returncode == 0
    offset = trial.evidence / "offset"
    offset.write_text(str(jump_s))

    daemon = start_rewired(trial, JUMPS.format(file=str(offset)))
    wait_until(lambda: trial.log().count("daemon.started") == 2)

    told = answers(trial)
    assert told["daemon"]["state"] == "paused"
    assert [one["state"] for one in told["dispatches"]] == ["running"]
    go(trial)
    wait_until(lambda: trial.outcomes().get("LIVE-1") == "shipped")
    assert trial.program("resume").returncode == 0
    assert end(trial) == 0
    assert daemon.returncode == 0
    trial.check()
    assert len(trial.starts()) == 2


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
@pytest.mark.parametrize("jump", ["+1d", "-1d"])
def test_case_49_the_clock_of_the_whole_process_jumps(begin: Begin, jump: str) -> None:
    trial = begin("LIVE-1", agent=LIVES)
    clock = trial.evidence / "clock"
    clock.write_text("+0d\n")
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    daemon = trial.start("--once", **trial.env, **faked)
    wait_until(lambda: trial.starts("LIVE-1") and "dispatch.settled" in trial.log())

    clock.write_text(f"{jump}\n")
    wait_until(lambda: [one["gap"] for one in answers(trial)["dispatches"]] == ["LIVE-1"])
    go(trial)

    assert daemon.wait(90) == 0
    trial.check()
