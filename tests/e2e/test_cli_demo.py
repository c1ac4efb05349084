"""What the demonstration says of where it lies, and what it leaves (behaviour C9)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)

Start = Callable[..., subprocess.Popen[str]]


def started_in(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the program with its temporary files in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "chump_orchestrator", *arguments],
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return partial(started_in, tmp_path)


@dataclass(frozen=True, slots=True)
class Shown:
    """A demonstration that has ended."""

    code: int
    out: str
    err: str
    folder: Path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """One demonstration for all who only look at what has come of it."""
    folder = tmp_path_factory.mktemp("shown")
    with started_in(folder, "demo") as demo:
        out, err = demo.communicate(timeout=200)
    return Shown(demo.returncode, out, err, folder)


def made_by_us(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("chump-")]


def test_the_demonstration_gives_a_true_account(shown: Shown) -> None:
    """Behaviour C9."""
    assert shown.code == 0, shown.out + shown.err
    assert "All as it should be" in shown.out
    assert "left behind: 0 worktrees, 0 leases, 0 processes" in shown.out


def test_a_demonstration_that_is_not_kept_names_no_file_that_is_gone(shown: Shown) -> None:
    assert shown.code == 0, shown.out + shown.err
    assert str(shown.folder) not in shown.out
    assert "--keep" in shown.out.splitlines()[0]
    assert made_by_us(shown.folder) == []


def test_a_demonstration_that_is_kept_names_files_that_are_there(
    start: Start, tmp_path: Path
) -> None:
    with start("demo", "--keep") as demo:
        out, err = demo.communicate(timeout=200)

    named = re.findall(rf"{re.escape(str(tmp_path))}\S+", out)
    assert demo.returncode == 0, out + err
    assert len(named) >= 4
    assert [path for path in named if not Path(path).exists()] == []


def test_an_interrupted_demonstration_says_so_and_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    """Behaviour C3."""
    with start("demo") as demo:
        assert demo.stdout is not None
        seen = ""
        while "works on branch" not in seen:
            line = demo.stdout.readline()
            assert line, demo.communicate()
            seen += line
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=200)

    assert demo.returncode == 130, seen + out + err
    assert "Interrupted" in out
    assert "wrong" not in out
    assert made_by_us(tmp_path) == []


def test_a_demonstration_that_nobody_watches_any_more_goes_on_to_its_end(
    start: Start, tmp_path: Path
) -> None:
    with start("demo") as demo:
        assert demo.stdout is not None
        demo.stdout.readline()
        demo.stdout.close()
        demo.stdout = None
        _, err = demo.communicate(timeout=200)

    assert (demo.returncode, err) == (0, "")
    assert made_by_us(tmp_path) == []
