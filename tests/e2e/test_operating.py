"""What an operator does to a running daemon, and what must not get past one."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.projects import EMPTY, Make, Project, gaps

pytestmark = pytest.mark.timeout(240)

FLAGGED = """\
import pathlib
while not pathlib.Path(os.environ["PROJECT_FLAG"]).exists():
    time.sleep(0.05)
ship()
"""
"""An agent that waits for a file before it does its work."""

NOTHING = "- {id: OLD-1, title: t, priority: P1, effort: s, status: done}\n"
"""A backlog in which nothing is left to do."""


def set_settings(project: Project, old: str, new: str) -> None:
    path = project.root / ".chump" / "orchestrator.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture
def claude(tmp_path: Path) -> Path:
    """A program `claude` that leaves a trace when it is run; gives the trace."""
    folder = tmp_path / "bin"
    folder.mkdir()
    trace = tmp_path / "claude-was-here"
    (folder / "claude").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (folder / "claude").chmod(0o755)
    return trace


@pytest.mark.parametrize("way", ["override", "table"])
def test_a5_no_way_to_claude_leads_past_the_consent(make: Make, claude: Path, way: str) -> None:
    project = make(gaps("ANY-1"))
    env = {"PATH": f"{claude.parent / 'bin'}:{os.environ['PATH']}"}
    if way == "override":
        env["CHUMP_DISPATCH_BACKEND"] = "claude"
    else:
        table = project.root / "docs" / "dispatch" / "routing.yaml"
        table.parent.mkdir()
        table.write_text("routes:\n- {candidates: [{backend: claude}]}\n")

    done = project.program("run", "--once", **env)

    assert done.returncode == 78, done.stderr
    assert "consent" in done.stderr
    assert not claude.exists()


def test_a5_an_override_that_leads_past_claude_needs_no_consent(make: Make) -> None:
    project = make(gaps("ANY-1"))
    set_settings(project, 'use = "custom"', 'use = "claude"')

    done = project.program("run", "--once", CHUMP_DISPATCH_BACKEND="custom")

    assert done.returncode == 0, done.stderr
    assert project.outcomes() == {"ANY-1": "shipped"}


def test_f1_no_table_or_setting_injects_a_fault(make: Make) -> None:
    project = make(gaps("ANY-1"))
    set_settings(project, 'use = "custom"', 'use = "exit_1"')

    done = project.program("run", "--once")

    assert done.returncode == 78
    assert "faults.allowed" in done.stderr


def test_a_reload_takes_over_what_it_says_and_names_what_it_does_not(
    make: Make, claude: Path
) -> None:
    project = make(NOTHING)
    project.start(PATH=f"{claude.parent / 'bin'}:{os.environ['PATH']}")
    project.eventually(lambda: project.program("status").returncode == 0)

    set_settings(project, "custom]\nargv = ", 'custom]\nargv = ["false"]\n# ')
    set_settings(project, 'min_free = "0GiB"', 'min_free = "0GiB"\nkeep_days = 3')
    late = project.program("reload")
    project.write_backlog(gaps("ANY-1"))
    project.eventually(lambda: project.outcomes().get("ANY-1") == "killed")

    assert late.returncode == 1
    assert "worktrees" in late.stderr
    assert "next start" in late.stderr

    set_settings(project, 'use = "custom"', 'use = "claude"')
    refused = project.program("reload")
    project.write_backlog(gaps("ANY-2"))
    project.program("reload")
    project.eventually(lambda: project.outcomes().get("ANY-2") == "killed")

    assert refused.returncode == 1
    assert "consent" in refused.stderr
    assert not claude.exists()


def test_b5_a_backlog_on_the_remote_is_followed(make: Make) -> None:
    """Somebody else pushes a gap; nothing in the work tree changes."""
    project = make(NOTHING)
    set_settings(project, "max_parallel", '[backlog]\nref = "origin/main"\n#')
    other = project.folder / "other"
    project.git("clone", "-q", str(project.origin), str(other), at=project.folder)
    project.start()
    project.eventually(lambda: project.program("status").returncode == 0)

    (other / "docs" / "gaps.yaml").write_text(f"gaps:\n{gaps('FAR-1')}")
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    project.git(*identity, "commit", "-qam", "A gap", at=other)
    project.git("push", "-q", "origin", "HEAD:main", at=other)

    project.eventually(lambda: project.outcomes() == {"FAR-1": "shipped"})


def test_c2_a_batch_speaks_of_itself_alone(make: Make, tmp_path: Path) -> None:
    """An earlier one's agents still hold their slots."""
    flag = tmp_path / "flag"
    project = make(gaps("OLD-1", "NEW-1", "NEW-2"), FLAGGED)
    first = project.program("--execute", "--max-parallel", "1", PROJECT_FLAG=str(flag))
    assert "DISPATCHED: OLD-1" in first.stdout

    second = subprocess.Popen(
        [sys.executable, "-m", "chump_orchestrator", "--execute", "--watch"],
        cwd=project.root,
        env={**os.environ, "PROJECT_FLAG": str(flag)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(2)
    flag.touch()
    out, err = second.communicate(timeout=120)

    assert second.returncode == 0, err
    assert "dispatching 1" in out
    assert "DISPATCHED: NEW-1" in out
    assert "OLD-1" not in out
    assert out.splitlines()[-1].startswith("shipped=1 ")


def test_a_log_that_nobody_reads_ends_nothing(make: Make) -> None:
    project = make(gaps("ANY-1"))
    reading, writing = os.pipe()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "chump_orchestrator", "run", "--once"],
        cwd=project.root,
        stdout=subprocess.DEVNULL,
        stderr=writing,
    )
    os.close(writing)
    os.close(reading)

    assert daemon.wait(120) == 0
    assert project.outcomes() == {"ANY-1": "shipped"}


def test_ctrl_c_tears_down_and_is_told_by_the_exit_code(make: Make, tmp_path: Path) -> None:
    """Behaviour C3."""
    project = make(gaps("ANY-1"), FLAGGED)
    daemon = project.start(PROJECT_FLAG=str(tmp_path / "never"))
    project.eventually(project.processes)

    daemon.send_signal(signal.SIGINT)

    assert daemon.wait(60) == 130
    assert project.left() == EMPTY
    assert project.outcomes() == {"ANY-1": "cancelled"}


def test_a_terminal_that_closes_takes_the_run_with_it(make: Make, tmp_path: Path) -> None:
    """A daemon without a terminal reloads at SIGHUP; one whose terminal has gone must not stay."""
    project = make(gaps("ANY-1"), FLAGGED)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.root)
        os.environ["PROJECT_FLAG"] = str(tmp_path / "never")
        os.execv(sys.executable, [sys.executable, "-m", "chump_orchestrator", "run"])
    project.eventually(project.processes)

    os.close(terminal)

    project.eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)
    assert project.left() == EMPTY
    assert project.outcomes() == {"ANY-1": "cancelled"}


def test_a_forge_that_is_none_is_said_before_anything_is_dispatched(make: Make) -> None:
    project = make(gaps("ANY-1"))
    set_settings(project, 'use = "git"', 'use = "gh"')

    done = project.program("run", "--once")

    assert done.returncode in (69, 78), done.stderr
    assert "Traceback" not in done.stderr
    assert project.json("history")["dispatches"] == []
    assert project.left() == EMPTY


def test_a_gap_that_does_not_exist_is_no_run(make: Make) -> None:
    project = make(gaps("ANY-1"))

    done = project.program("run", "--once", "--gap", "NOPE-1")

    assert done.returncode == 78
    assert "NOPE-1" in done.stderr


def test_a_remote_without_a_commit_ends_a_single_run_at_once(make: Make) -> None:
    project = make(gaps("ANY-1"))
    project.git("--git-dir", str(project.origin), "update-ref", "-d", "refs/heads/main")
    project.git("update-ref", "-d", "refs/remotes/origin/main")

    done = project.program("run", "--once")

    assert done.returncode == 1, done.stderr
    assert "nothing more could be dispatched" in done.stderr
    assert "ANY-1" in done.stdout
