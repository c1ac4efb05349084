"""Cases 12 to 17 of the fault catalogue: signals to the daemon, its shims and its agents."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from datetime import datetime

import pytest

from tests.e2e.projects import EMPTY, gaps
from tests.faults import stepping
from tests.faults.altered import COUNTS_STANDSTILL, calling, shims
from tests.faults.conftest import Begin
from tests.faults.rewired import start_rewired
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

SHIPS_AT_LAST = """\
def is_first():
    with open(os.path.join(here, "starts")) as book:
        return sum(line.startswith(gap + " ") for line in book) == 1
if not is_first():
    ship()
    sys.exit()
"""
"""A second agent of a gap finds nothing in its way any more."""

DEAF = """\
def note(number, _):
    sign("signals", gap, signal.Signals(number).name, repr(time.time()))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
sign("ready", gap)
while True:
    time.sleep(0.02)
"""
"""Notes what it is sent, and goes on."""

FLAGGED = """\
while not os.path.exists(os.path.join(here, "go-" + gap)):
    time.sleep(0.05)
"""


def start(trial: Trial) -> subprocess.Popen[bytes]:
    return trial.start(**trial.env)


def let_go(trial: Trial, *ids: str) -> None:
    for one in ids:
        (trial.evidence / f"go-{one}").touch()


def pids(trial: Trial) -> dict[str, int]:
    """Return who signed for each start."""
    return {line[0]: int(line[2]) for line in trial.noted("starts")}


def settled(trial: Trial) -> int:
    return trial.log().count("dispatch.settled")


def set_setting(trial: Trial, old: str, new: str) -> None:
    path = trial.root / ".chump" / "orchestrator.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def teardown(trial: Trial, begin_it: Callable[[Trial], subprocess.Popen[bytes]]) -> None:
    """Send SIGTERM when four agents are ready for it, and see to it that all were asked at once.

    An agent that is asked only after another has gone was not asked in parallel with it.
    """
    daemon = begin_it(trial)
    trial.eventually(lambda: len(trial.noted("ready")) == 4)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(60) == 0
    first: dict[str, float] = {}
    for gap, _, at in trial.noted("signals"):
        first.setdefault(gap, float(at))
    ends = [json.loads(path.read_text()) for path in trial.state.glob("d/*/exit.json")]
    gone = [datetime.fromisoformat(end["ended_at"]).timestamp() for end in ends]
    assert [end["killed_by"] for end in ends] == ["teardown"] * 4
    assert len(first) == 4
    assert max(first.values()) < min(gone), (first, gone)


def four_deaf_agents(begin: Begin) -> Trial:
    return begin("ANY-1", "ANY-2", "ANY-3", agent=SHIPS_AT_LAST + DEAF, slots=4)


def test_case_12_sigterm_with_four_agents_asks_all_of_them_at_once(begin: Begin) -> None:
    trial = four_deaf_agents(begin)

    teardown(trial, start)

    told = [line[:2] for line in trial.noted("signals")]
    for gap in ("ANY-1", "ANY-2", "ANY-3", BYSTANDER):
        assert [name for who, name in told if who == gap] == ["SIGINT", "SIGTERM"]
    assert set(trial.outcomes().values()) == {"cancelled"}
    assert trial.left() == EMPTY
    trial.settle()
    trial.check()


def test_case_12_control_without_the_parallel_stop(begin: Begin) -> None:
    trial = four_deaf_agents(begin)

    with pytest.raises(AssertionError):
        teardown(trial, lambda trial: start_rewired(trial, calling("one_by_one()")))


def test_case_13_a_second_sigint_kills_at_once_and_outcomes_are_written(begin: Begin) -> None:
    """With a grace of an hour, the second one alone can have ended them."""
    trial = begin("ANY-1", agent=SHIPS_AT_LAST + DEAF)
    set_setting(trial, 'grace = "2s"', 'grace = "1h"')
    daemon = start(trial)
    trial.eventually(lambda: len(trial.noted("ready")) == 2)

    daemon.send_signal(signal.SIGINT)
    trial.eventually(lambda: len(trial.noted("signals")) == 2)
    daemon.send_signal(signal.SIGINT)
    code = daemon.wait(60)

    assert code == 130
    assert trial.left() == EMPTY
    assert trial.outcomes() == {"ANY-1": "cancelled", BYSTANDER: "cancelled"}
    trial.settle()
    trial.check()


def test_case_14_sighup_with_bad_files_keeps_the_last_good_ones(begin: Begin) -> None:
    """Behaviour B5: nothing stops, and what was waiting is dispatched by what was read before."""
    trial = begin("ANY-1", "ANY-2", agent=FLAGGED + "ship()", slots=1)
    settings = trial.root / ".chump" / "orchestrator.toml"
    backlog = trial.root / "docs" / "gaps.yaml"
    good_settings, good_backlog = settings.read_text(), backlog.read_text()
    daemon = start(trial)
    trial.eventually(lambda: trial.noted("starts"))

    settings.write_text(good_settings.replace("max_parallel = 1", 'max_parallel = "many'))
    daemon.send_signal(signal.SIGHUP)
    trial.eventually(lambda: "settings.kept" in trial.log())
    backlog.write_text(good_backlog[: len(good_backlog) // 2] + "\n<<<<<<< HEAD\n")
    daemon.send_signal(signal.SIGHUP)
    trial.eventually(lambda: trial.log().count("SIGHUP") == 2 and "backlog" in trial.log())
    let_go(trial, "ANY-1", "ANY-2", BYSTANDER)
    trial.eventually(lambda: settled(trial) == 3)
    is_alive = daemon.poll() is None
    settings.write_text(good_settings)
    backlog.write_text(good_backlog)
    daemon.send_signal(signal.SIGTERM)

    assert daemon.wait(60) == 0
    assert is_alive
    assert set(trial.outcomes().values()) == {"shipped"}
    assert len(trial.starts()) == 3
    trial.settle()
    trial.check()


CALM = """\
if not os.path.exists(os.path.join(here, "calm")):
    time.sleep(600)
ship()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
@pytest.mark.parametrize("steps", [stepping.ALL[::2], stepping.ALL[1::2]], ids=["even", "odd"])
def test_case_15_a_signal_during_each_step_of_a_launch_leaves_nothing(
    begin: Begin, steps: tuple[str, ...], name: str, code: int
) -> None:
    trial = begin("ANY-1", agent=CALM, slots=1)

    for nth, step in enumerate(steps, start=1):
        change = calling(f"stepping.spoil({step!r}, {int(signal.Signals[name])})")
        daemon = start_rewired(trial, change)
        assert daemon.wait(60) == code, trial.log()
        assert trial.left() == EMPTY, step
        assert trial.log().count(f"to send {name}") == nth, step
    (trial.evidence / "calm").touch()
    trial.settle()
    trial.check()


def test_case_16_a_restart_leaves_agents_and_their_exit_codes_alone(begin: Begin) -> None:
    """Promise I8; behind `systemctl restart` stands SIGUSR1."""
    trial = begin("ANY-1", agent=FLAGGED + "if gap == 'ANY-1':\n    sys.exit(42)\nship()")
    first = start(trial)
    trial.eventually(lambda: len(trial.noted("starts")) == 2)
    before = pids(trial)
    trial.eventually(
        lambda: {d["pid"] for d in trial.json("status")["dispatches"]} == {*before.values()}
    )

    asked = time.monotonic()
    first.send_signal(signal.SIGUSR1)
    code = first.wait(60)
    took = time.monotonic() - asked
    let_go(trial, "ANY-1")  # it ends while nobody looks
    trial.eventually(lambda: list(trial.state.glob("d/any-1-*/exit.json")))
    second = start(trial)
    trial.eventually(lambda: settled(trial) == 1)
    trial.eventually(
        lambda: [d["pid"] for d in trial.json("status")["dispatches"]] == [before[BYSTANDER]]
    )
    let_go(trial, BYSTANDER)
    trial.eventually(lambda: settled(trial) == 2)
    second.send_signal(signal.SIGTERM)

    assert code == 0
    assert took < 20  # 5 s on a machine that has nothing else to do
    assert second.wait(60) == 0
    told = {d["gap"]: d for d in trial.json("history")["dispatches"]}
    assert (told["ANY-1"]["outcome"], told["ANY-1"]["reason"]) == ("killed", "exit code 42")
    assert len(trial.starts()) == 2
    trial.check()


SOFT_S = 8
"""Twice this is the deadline; a shim that stands still counts ten seconds of it at most."""


def stand_still(processes: Iterable[int], for_s: float) -> None:
    """Have processes stand still for a while, as when a container or a machine is frozen."""
    held = list(processes)
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(for_s)
    for pid in held:
        os.kill(pid, signal.SIGCONT)


def freeze_past_the_deadline(trial: Trial, daemon: subprocess.Popen[bytes]) -> None:
    trial.eventually(lambda: len(trial.noted("starts")) == 2)
    trial.eventually(lambda: len(list(trial.state.glob("d/*/running.json"))) == 2)
    shims = [
        json.loads(path.read_text())["shim_pid"] for path in trial.state.glob("d/*/running.json")
    ]
    stand_still((daemon.pid, *shims, *pids(trial).values()), 2 * SOFT_S + 1)
    let_go(trial, "ANY-1", BYSTANDER)
    wait_until(lambda: daemon.poll() is not None)
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}


def frozen(begin: Begin) -> Trial:
    # Some time after waking, so that whoever means to stop it has time to.
    trial = begin("ANY-1", agent=FLAGGED + "time.sleep(1)\nship()")
    trial.write_backlog(gaps("ANY-1", BYSTANDER, deadline=f"{SOFT_S}s"))
    return trial


def test_case_17_time_in_which_everything_stood_still_ends_nobody(begin: Begin) -> None:
    """No mass kill on waking; by the wall, and by the clock of the system, it is past time."""
    trial = frozen(begin)

    freeze_past_the_deadline(trial, trial.start("--once", **trial.env))

    trial.check()
    assert len(trial.starts()) == 2


@pytest.mark.parametrize("who", ["shim", "daemon"])
def test_case_17_control_without_leaving_standstill_out(begin: Begin, who: str) -> None:
    """Either of the two would end all of them."""
    trial = frozen(begin)
    change = "no_recount()" if who == "daemon" else shims(COUNTS_STANDSTILL, trial.folder)

    with pytest.raises(AssertionError):
        freeze_past_the_deadline(trial, start_rewired(trial, calling(change), "--once"))


def test_case_17_a_daemon_that_stood_still_takes_up_where_it_was(begin: Begin) -> None:
    """Meanwhile an agent has ended, and another one is at its work."""
    trial = begin("ANY-1", agent=FLAGGED + "ship()")
    daemon = start(trial)
    trial.eventually(lambda: len(list(trial.state.glob("d/*/running.json"))) == 2)

    os.kill(daemon.pid, signal.SIGSTOP)
    let_go(trial, "ANY-1")
    trial.eventually(lambda: list(trial.state.glob("d/any-1-*/exit.json")))
    os.kill(daemon.pid, signal.SIGCONT)
    trial.eventually(lambda: settled(trial) == 1)
    let_go(trial, BYSTANDER)
    trial.eventually(lambda: settled(trial) == 2)
    daemon.send_signal(signal.SIGTERM)

    assert daemon.wait(60) == 0
    trial.check()
    assert len(trial.starts()) == 2
