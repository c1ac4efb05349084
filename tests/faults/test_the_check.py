"""The check that follows every case finds what it is for: each promise broken on purpose."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Begin
from tests.faults.trials import SECRET, Trial

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Trial, Path]]:
    """A trial in which all went well, and a copy of its folder."""
    place = tmp_path_factory.mktemp("settled")
    trial = Trial.begin(place / "t")
    try:
        trial.settle()
        shutil.copytree(trial.folder, place / "copy", symlinks=True)
        yield trial, place / "copy"
    finally:
        trial.clean()


@pytest.fixture
def settled(first: tuple[Trial, Path]) -> Trial:
    """The same trial, whatever has been done to it since: its folder is put back."""
    trial, copy = first
    shutil.rmtree(trial.folder)
    shutil.copytree(copy, trial.folder, symlinks=True)
    return trial


def test_what_is_put_back_breaks_no_promise(settled: Trial) -> None:
    settled.check()


def test_an_ordinary_run_breaks_no_promise(begin: Begin) -> None:
    trial = begin("ANY-1", "ANY-2", agent='commit(gap + "-made.txt", gap)\nship()')

    trial.settle()

    trial.check()
    assert len(trial.starts()) == 3
    assert len(trial.noted("commits")) == 3


def _a_second_agent(trial: Trial) -> None:
    (trial.evidence / "doubled").write_text("ANY-1 any-1-x\n")


def _an_agent_without_outcome(trial: Trial) -> None:
    with (trial.evidence / "starts").open("a") as file:
        file.write("ANY-1 any-1-000000000000-aaaaaa 7\n")


def _a_second_reflection(trial: Trial) -> None:
    with sqlite3.connect(trial.root / "sessions" / "chump_memory.db") as connection:
        connection.execute(
            "INSERT INTO chump_reflections (episode_id, task_id)"
            " SELECT episode_id, task_id FROM chump_reflections LIMIT 1"
        )
    connection.close()


def _a_lost_commit(trial: Trial) -> None:
    with (trial.evidence / "commits").open("a") as file:
        file.write(f"ANY-1 {'7' * 40}\n")


def _a_lost_file(trial: Trial) -> None:
    (trial.evidence / "files").write_text("ANY-1 any-1-x gone.txt precious\n")


def _a_secret(trial: Trial) -> None:
    (trial.state / "leak").write_text(SECRET)


def _a_traceback(trial: Trial) -> None:
    with (trial.folder / "daemon.log").open("a") as log:
        log.write("Traceback (most recent call last)\n")


def _a_lease(trial: Trial) -> None:
    (trial.root / ".chump-locks" / "left.json").write_text("{}")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_a_second_agent, "I1"),
        (_an_agent_without_outcome, "I2"),
        (_a_second_reflection, "I2"),
        (_a_lost_commit, "I4"),
        (_a_lost_file, "I4"),
        (_a_secret, "I7"),
        (_a_traceback, "traceback"),
        (_a_lease, "leases"),
    ],
)
def test_each_broken_promise_is_told(
    settled: Trial, harm: Callable[[Trial], None], told: str
) -> None:
    harm(settled)

    with pytest.raises(AssertionError, match=told):
        settled.check()


def test_a_living_process_and_a_held_lock_are_told(settled: Trial) -> None:
    trial = settled
    (lock,) = trial.state.glob("d/*/lock")
    marker = {"CHUMP_DISPATCH_ID": lock.parent.name, "PROJECT_EVIDENCE": str(trial.evidence)}
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, **marker}
    )
    held = os.open(lock, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(AssertionError) as told:
            trial.check()
    finally:
        os.close(held)
        left.kill()
        left.wait()

    assert "I3: processes" in str(told.value)
    assert "I3: somebody holds" in str(told.value)


def test_a_bystander_that_did_not_ship_is_told(begin: Begin) -> None:
    trial = begin(agent="sys.exit(7)")
    trial.settle()

    with pytest.raises(AssertionError, match="I6"):
        trial.check()
