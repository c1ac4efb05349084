"""What the demonstration says of where it lies, and what it leaves (behaviour C9)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(240)

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start the program with its temporary files in `tmp_path`."""

    def started(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "chump_orchestrator", *arguments],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return started


def made_by_us(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("chump-")]


def test_a_demonstration_that_is_not_kept_names_no_file_that_is_gone(
    start: Start, tmp_path: Path
) -> None:
    with start("demo") as demo:
        out, err = demo.communicate(timeout=200)

    assert demo.returncode == 0, out + err
    assert str(tmp_path) not in out
    assert "--keep" in out.splitlines()[0]
    assert made_by_us(tmp_path) == []


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


def test_a_self_test_talks_of_its_faults_and_not_of_what_they_do(start: Start) -> None:
    """What backends and agents come to is expected here, and no news for the log."""
    with start("self-test") as trying:
        out, err = trying.communicate(timeout=200)

    assert trying.returncode == 0, out + err
    assert err == ""
