"""Cases 5 to 11 of the fault catalogue: what happens while no daemon looks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator import shim
from chump_orchestrator.adapters.local.launching import ANSWER_S
from chump_orchestrator.shim import linux as host
from tests.e2e.projects import gaps
from tests.faults import crashing, rigs
from tests.faults.conftest import Begin
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

HELD = """\
def held():
    while not os.path.exists(os.path.join(here, gap + ".go")):
        time.sleep(0.02)
"""
"""Put before an agent that waits until it is released."""


def release(trial: Trial, *gap_ids: str) -> None:
    """Let agents go on that are held."""
    for gap in gap_ids:
        (trial.evidence / f"{gap}.go").touch()


def end_of(trial: Trial, slug: str) -> Path | None:
    """Return the record of the end of a gap's latest agent; `None` before there is one."""
    return max(trial.state.glob(f"d/{slug}-*/exit.json"), default=None)


def told(trial: Trial) -> dict[str, Any]:
    """Return what `history` tells of the latest dispatch of each gap."""
    return {one["gap"]: one for one in reversed(trial.json("history")["dispatches"])}


def lose(trial: Trial, slug: str, **changes: object) -> None:
    """Kill a shim whose daemon is down, and change its record of the start."""
    running = rigs.running(trial, slug)
    assert running is not None
    record = json.loads(running.read_bytes())
    os.kill(record["shim_pid"], signal.SIGKILL)
    wait_until(lambda: not trial.processes(running.parent.name))
    running.write_text(json.dumps({**record, **changes}))


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else's, leader of a group."""
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


FOUR_ENDS = (
    HELD
    + """\
held()
if gap == "ANY-1":
    sys.exit(42)
if gap == "ANY-2":
    os.kill(os.getpid(), signal.SIGSEGV)
commit(gap + "-made.txt", gap)
ship()
if gap == "ANY-3":
    sys.exit(7)
"""
)
ENDS = {"ANY-1": "exit code 42", "ANY-2": "signal 11"}


@pytest.mark.parametrize("without", ["", "records"])
def test_case_05_agents_end_while_the_daemon_is_down(begin: Begin, without: str) -> None:
    """Their exact ends are told, one of them after its request was merged.

    Control arm: without the shims' records of the end nobody knows how they ended.
    """
    trial = begin("ANY-1", "ANY-2", "ANY-3", agent=FOUR_ENDS, slots=4)
    rigs.crash(trial, "d6-after:4")
    release(trial, "ANY-1", "ANY-2", "ANY-3", BYSTANDER)
    wait_until(lambda: all(end_of(trial, slug) for slug in ("any-1", "any-2", "any-3", "other-1")))
    wait_until(lambda: not trial.processes())

    rigs.run(trial, without=[without] if without else [])

    trial.check()
    ends = {gap: told(trial)[gap]["reason"] for gap in ENDS}
    assert (ends == ENDS) is not bool(without), ends
    assert trial.outcomes()["ANY-3"] == "shipped"


STUBBORN = """\
if gap == "ANY-1":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    leave("notes.txt", "half")
    time.sleep(600)
ship()
"""


@pytest.mark.parametrize("is_enforced", [True, False])
def test_case_06_a_deadline_passes_while_the_daemon_is_down(
    begin: Begin, is_enforced: bool
) -> None:
    """The shim holds its agent to it, by KILL in the end. Control arm: a shim that does not."""
    trial = begin(agent=STUBBORN)
    trial.write_backlog(gaps("ANY-1", deadline="1s") + gaps(BYSTANDER))
    program = rigs.shim_program(trial, {"any-1": ""}, without=[] if is_enforced else ["deadline"])
    rigs.crash(trial, "d6-after:2", shim=program)

    if not is_enforced:
        with pytest.raises(AssertionError, match="not in time"):
            wait_until(lambda: end_of(trial, "any-1"), patience_s=8.0)
        return
    wait_until(lambda: end_of(trial, "any-1"))
    wait_until(lambda: not trial.processes("any-1"))
    trial.settle()

    trial.check()
    assert (told(trial)["ANY-1"]["outcome"], told(trial)["ANY-1"]["cause"]) == (
        "killed",
        "deadline",
    )


OLDER = """\
import os, sys
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
sys.path.append(os.path.dirname(os.path.dirname(here)))
from chump_orchestrator.shim import files, owner
files.PROTOCOL = 0
def without(real, *keys):
    return lambda self: {key: value for key, value in real(self).items() if key not in keys}
owner.Owner._sum_up = without(
    owner.Owner._sum_up, "peak_rss_bytes", "cpu_s", "bytes", "dropped", "survivors", "swept"
)
owner.Owner._status = without(owner.Owner._status, "hard_s", "silent_s", "bytes")
if __name__ == "__main__":
    sys.exit(owner.main(sys.argv))
"""
"""A shim that says less than today's."""


@pytest.mark.parametrize("is_older", [False, True], ids=["same protocol", "older protocol"])
def test_case_07_shims_of_the_previous_release_are_taken_up(begin: Begin, is_older: bool) -> None:
    """Their code is gone by then; the daemon follows them, stops one, and hears how one ended."""
    trial = begin(
        *("ANY-1", "ANY-2"),
        agent=HELD + 'held()\nif gap == "ANY-1":\n    sys.exit(42)\nship()',
        slots=3,
    )
    previous = trial.folder / "old" / "chump_orchestrator"
    shutil.copytree(Path(shim.__file__).parent, previous / "shim")
    (previous / "__init__.py").touch()
    if is_older:
        (previous / "shim" / "__main__.py").write_text(OLDER)
    code = rigs.start(trial, "--once", at="d6-after:3", shim_folder=previous / "shim").wait(60)
    assert code == -signal.SIGKILL
    pids = {line[0]: int(line[2]) for line in wait_for_starts(trial, 3)}
    shutil.rmtree(previous.parent)

    daemon = trial.start("--once", **trial.env)
    trial.eventually(lambda: running_pids(trial) == pids)
    stopped = trial.program("stop", "ANY-2")
    release(trial, "ANY-1", BYSTANDER)
    daemon.wait(60)

    assert stopped.returncode == 0, stopped.stderr
    trial.check()
    assert trial.outcomes() == {"ANY-1": "killed", "ANY-2": "cancelled", BYSTANDER: "shipped"}
    assert told(trial)["ANY-1"]["reason"] == "exit code 42"
    assert len(trial.starts()) == 3


def wait_for_starts(trial: Trial, number: int) -> list[list[str]]:
    wait_until(lambda: len(trial.noted("starts")) == number)
    return trial.noted("starts")


def running_pids(trial: Trial) -> dict[str, int]:
    """Return the agents that `status` shows."""
    done = trial.program("status", "--json")
    found = json.loads(done.stdout)["dispatches"] if done.returncode == 0 else []
    return {one["gap"]: one["pid"] for one in found}


SLEEPER = 'if gap == "ANY-1":\n    leave("notes.txt", "half")\n    time.sleep(600)\nship()'


@pytest.mark.parametrize("is_known", [True, False])
def test_case_08_the_machine_was_started_anew(
    begin: Begin, stranger: subprocess.Popen[bytes], is_known: bool
) -> None:
    """Whoever has the recorded pids now is left alone, and that nothing lives needs no proof.

    Control arm: when the boot ids are not told apart, the stranger is killed.
    """
    trial = begin("ANY-1", agent=SLEEPER)
    rigs.crash(trial, "d6-after:2")
    wait_until(lambda: end_of(trial, "other-1") and trial.noted("files"))
    now = {"pid": stranger.pid, "pgid": stranger.pid, "start": host.start_of(stranger.pid)}
    lose(trial, "any-1", boot_id="another", **now)

    rigs.run(trial, without=[] if is_known else ["boot-id"])

    trial.check()
    assert (stranger.poll() is None) is is_known
    assert told(trial)["ANY-1"]["outcome"] == "lost"
    assert ("anew" in told(trial)["ANY-1"]["reason"]) is is_known
    assert ("could not be proved" in trial.program("why", "ANY-1").stdout) is not is_known


@pytest.mark.parametrize("is_told_apart", [True, False])
def test_case_09_a_recorded_pid_is_another_process_by_now(
    begin: Begin, stranger: subprocess.Popen[bytes], is_told_apart: bool
) -> None:
    """It started at another time. Control arm: without a look at that it is killed."""
    trial = begin("ANY-1", agent=SLEEPER)
    rigs.crash(trial, "d6-after:2")
    wait_until(lambda: end_of(trial, "other-1") and trial.noted("files"))
    lose(trial, "any-1", pid=stranger.pid, pgid=stranger.pid, shim_pid=stranger.pid)

    rigs.run(trial, without=[] if is_told_apart else ["start-time"])

    trial.check()
    assert (stranger.poll() is None) is is_told_apart
    assert told(trial)["ANY-1"]["outcome"] == "lost"


@pytest.mark.parametrize("is_locked", [True, False])
def test_case_10_a_second_daemon_touches_nothing(begin: Begin, is_locked: bool) -> None:
    """Exit code 75, also through a symlink; the first one is stopped, so any change is its.

    Control arm: without the daemon's lock a second one goes to work.
    """
    trial = begin("ANY-1", agent=HELD + "held()\nship()")
    first = trial.start("--once", **trial.env)
    wait_for_starts(trial, 2)
    trial.eventually(lambda: trial.log().count("dispatch.launched") == 2)
    (trial.folder / "link").symlink_to(trial.root)
    first.send_signal(signal.SIGSTOP)
    try:
        before = everything(trial)
        if is_locked:
            second = trial.program("run", "--once", **trial.env)
            third = trial.program(
                "run", "--once", "--repo-root", str(trial.folder / "link"), **trial.env
            )
            assert (second.returncode, third.returncode) == (75, 75), third.stderr
            assert everything(trial) == before
        else:
            other = rigs.start(trial, "--once", without=["daemon-lock"])
            trial.eventually(lambda: trial.log().count("daemon.started") == 2)
            other.kill()
            other.wait()
            assert everything(trial) != before
    finally:
        trial.daemon = first
        first.send_signal(signal.SIGCONT)
    release(trial, "ANY-1", BYSTANDER)
    first.wait(60)

    trial.check()
    assert len(trial.starts()) == 2


def everything(trial: Trial) -> dict[str, tuple[int, int, int]]:
    """Return every file below the project with what tells that it was written."""
    return {
        str(path): (found.st_ino, found.st_size, found.st_mtime_ns)
        for path in trial.root.rglob("*")
        for found in [path.lstat()]
    }


STOPPED_S = float(os.environ.get("FAULT_STOPPED_S", "20"))


def test_case_11_the_daemon_is_stopped_while_agents_run_and_end(begin: Begin) -> None:
    """Nothing is killed on waking, nothing is lost."""
    trial = begin(
        *("ANY-1", "ANY-2"),
        agent=HELD + 'held()\nif gap == "ANY-1":\n    sys.exit(42)\nship()',
        slots=3,
    )
    daemon = trial.start("--once", **trial.env)
    wait_for_starts(trial, 3)
    daemon.send_signal(signal.SIGSTOP)
    release(trial, "ANY-1", BYSTANDER)
    wait_until(lambda: end_of(trial, "any-1") and end_of(trial, "other-1"))

    time.sleep(STOPPED_S)
    daemon.send_signal(signal.SIGCONT)
    trial.eventually(lambda: "exit code 42" in trial.log())
    release(trial, "ANY-2")
    daemon.wait(60)

    trial.check()
    assert trial.outcomes() == {"ANY-1": "killed", "ANY-2": "shipped", BYSTANDER: "shipped"}
    assert told(trial)["ANY-1"]["reason"] == "exit code 42"
    assert len(trial.starts()) == 3


@pytest.mark.parametrize(
    ("at", "by"), [("d5-heard-before:2", "block-soon"), ("d6-after:2", "block")]
)
def test_case_11_the_loop_is_blocked(begin: Begin, at: str, by: str) -> None:
    """Also while it waits for a shim, which answers in time; only nobody is there to hear it."""
    assert crashing.BLOCKED_S > ANSWER_S
    trial = begin("ANY-1", agent="time.sleep(1)\nship()")

    rigs.run(trial, at=at, by=by)

    trial.check()
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}
    assert len(trial.starts()) == 2
