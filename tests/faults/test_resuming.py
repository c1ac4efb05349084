"""Case 1 of the fault catalogue, for launches that go on with a session.

The worktree was there before, with work in it that nobody has committed: whatever the daemon died
of, and whatever it undoes, that stays where it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import rigs
from tests.faults.conftest import Begin
from tests.faults.trials import BYSTANDER, Trial, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]

CLAUDE = """\
#!{python} -I
import os, re, subprocess, sys
gap = re.search("gap ([A-Z]+-[0-9]+)", sys.stdin.read())[1]
asked = ["git", "branch", "--show-current"]
branch = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
os.environ["PROJECT_RESUMED"] = "yes" if "--resume" in sys.argv else ""
os.execv(sys.executable, [sys.executable, {agent!r}, gap, branch])
"""
"""Takes the arguments of a claude and does what the trial's agent does."""

HALF_DONE = """\
if gap == "ANY-1" and not os.environ["PROJECT_RESUMED"]:
    commit("one.txt", "one")
    leave("notes.txt", "notes")
    print("ready", flush=True)
    time.sleep(60)
if gap == "ANY-1" and os.environ["PROJECT_RESUMED"]:
    assert open("notes.txt").read() == "notes"
    git("add", "--", "notes.txt")
ship()
"""

BEFORE_ITS_AGENT = (
    *("d1-after", "d2-taken-before", "d2-taken-after", "d2-lease-before", "d2-lease-after"),
    *("d4-before", "d4-after", "d3-before", "d3-after", "d5-before"),
)
WITH_ITS_AGENT = ("d5-told-after", "d6-before", "d6-after", "d7-before", "d7-after")
IN_RECOVERY = ("d2-taken-before", "d2-taken-after", "abort-before", "abort-after")


def stopped(begin: Begin) -> Trial:
    """Return a trial whose agent was stopped in the middle of its work; no daemon runs."""
    trial = begin("ANY-1", agent=HALF_DONE)
    program = trial.folder / "claude"
    agent = str(trial.folder / "agent.py")
    program.write_text(CLAUDE.format(python=sys.executable, agent=agent))
    program.chmod(0o755)
    settings = trial.root / ".chump" / "orchestrator.toml"
    text = settings.read_text().replace('use = "custom"', 'use = "claude"', 1)
    options = f'[backend.claude]\nprogram = "{program}"\npass_env = ["PROJECT_*"]\n'
    settings.write_text(f"consent = true\n{text}{options}")
    daemon = trial.start(**trial.env)
    wait_until(lambda: (worktree(trial) / "notes.txt").exists() and trial.starts(BYSTANDER))
    trial.program("stop", "ANY-1")
    wait_until(lambda: set(trial.outcomes()) == {"ANY-1", BYSTANDER})
    wait_until(lambda: trial.json("status")["dispatches"] == [])
    daemon.terminate()
    daemon.wait(60)
    return trial


def worktree(trial: Trial) -> Path:
    return trial.root / ".claude" / "worktrees" / "any-1"


def go_on(trial: Trial) -> None:
    said = trial.program("retry", "ANY-1", "--resume")
    assert said.returncode == 0, said.stderr


def complaints(trial: Trial, at: str) -> Iterator[str]:
    """Yield what is wrong with what a launch has left that never had its agent."""
    if not (worktree(trial) / "notes.txt").exists():
        yield f"{at}: what was not committed is gone"
    why = trial.program("why", "ANY-1").stdout
    if "`retry ANY-1 --resume` goes on with it" not in why:
        yield f"{at}: nothing says how it is gone on with: {why}"
    if len(trial.starts("ANY-1")) != 1:
        yield f"{at}: an agent was started"
    if trial.left()["leases"]:
        yield f"{at}: a lease is left"


def test_case_01_a_resumed_launch_that_dies_before_its_agent_gives_the_worktree_back(
    begin: Begin,
) -> None:
    trial = stopped(begin)
    found: list[str] = []

    for at in BEFORE_ITS_AGENT:
        go_on(trial)
        rigs.crash(trial, at)
        trial.settle()
        found += complaints(trial, at)
    for at in IN_RECOVERY:
        go_on(trial)
        rigs.crash(trial, "d2-lease-after")
        rigs.crash(trial, at)
        trial.settle()
        found += complaints(trial, f"recovery, {at}")
    go_on(trial)
    trial.settle()

    assert found == []
    trial.check()
    assert trial.outcomes() == {"ANY-1": "shipped", BYSTANDER: "shipped"}
    assert len(trial.starts("ANY-1")) == 2


@pytest.mark.parametrize("at", WITH_ITS_AGENT)
def test_case_01_a_resumed_agent_outlives_its_daemon(begin: Begin, at: str) -> None:
    trial = stopped(begin)
    go_on(trial)

    rigs.crash(trial, at)
    trial.settle()

    trial.check()
    assert trial.outcomes()["ANY-1"] == "shipped"
    assert len(trial.starts("ANY-1")) == 2


def test_case_01_a_daemon_that_dies_before_anything_is_on_record_keeps_the_wish(
    begin: Begin,
) -> None:
    trial = stopped(begin)
    go_on(trial)

    rigs.crash(trial, "d1-before")
    trial.settle()

    trial.check()
    assert trial.outcomes()["ANY-1"] == "shipped"


def test_case_01_control_what_the_launch_did_not_make_it_must_not_remove(begin: Begin) -> None:
    """Without giving back, recovery takes the worktree for one of its own."""
    trial = stopped(begin)
    (worktree(trial) / "notes.txt").unlink()
    trial.git("push", "-q", "origin", "claude/any-1")
    go_on(trial)

    rigs.crash(trial, "d2-lease-after")
    rigs.run(trial, without=["giving-back"])

    assert not worktree(trial).exists()
