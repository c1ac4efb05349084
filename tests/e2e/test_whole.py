"""What a newcomer tries first: the demonstration, the self-test, and the old command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.projects import EMPTY, Project, gaps

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project.make(tmp_path / "p", gaps("A-1", "A-2", "A-3"))
    yield made
    made.clean()


def program(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chump_orchestrator", *args],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_self_test_injects_every_fault() -> None:
    """Behaviour F1. What backends and agents come to is expected here, and no news for the log."""
    done = program("self-test")

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["ok", "spawn_fail"],
        ["ok", "exit_1"],
        ["ok", "exit_0_no_pr"],
        ["ok", "monitor_timeout"],
    ]


def test_the_first_implementation_s_batch_is_watched_to_its_end(project: Project) -> None:
    """Behaviour C2: one batch, no refill, a line per branch, the counts at the end."""
    done = project.program("--execute", "--watch", "--max-parallel", "2")

    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    dispatched = [line for line in lines if line.startswith("DISPATCHED")]
    assert sorted(line.split(" as PID")[0] for line in dispatched) == [
        f"DISPATCHED: A-{n} in {project.root}/.claude/worktrees/a-{n}" for n in (1, 2)
    ]
    assert sorted(line for line in lines if line.startswith("  ")) == [
        "  SHIPPED        claude/a-1",
        "  SHIPPED        claude/a-2",
    ]
    assert lines[-1] == (
        "shipped=2  ci_failed=0  stalled=0  killed=0  race_abandoned=0  spawn_failures=0"
    )
    assert project.left() == EMPTY


def test_without_watch_the_agents_go_on_and_run_settles_them(project: Project) -> None:
    (project.folder / "agent.py").write_text(
        (project.folder / "agent.py").read_text().replace("\nship()", "\ntime.sleep(3)\nship()")
    )

    batch = project.program("--execute", "--max-parallel", "1")
    during = project.outcomes()
    project.program("run", "--once", "--gap", "A-1")

    assert batch.returncode == 0, batch.stderr
    assert "`chump-orchestrator run` settles them" in batch.stderr
    assert during == {}
    assert project.outcomes() == {"A-1": "shipped"}


def test_a_program_that_is_missing_is_a_spawn_failure(project: Project) -> None:
    """Behaviour C2: non-zero only when a spawn failed; A4: the backend is parked, not the gap."""
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace(sys.executable, "/no/such/program"))

    done = project.program("--execute", "--watch", "--max-parallel", "1")

    assert done.returncode == 1
    assert "DISPATCH-FAILED: A-1: no program to run the agent with" in done.stderr
    assert project.left() == EMPTY


def test_an_unattended_claude_needs_consent(project: Project) -> None:
    """Behaviour A5."""
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace('use = "custom"', 'use = "claude"'))

    done = project.program("run", "--once")

    assert done.returncode == 78
    assert "init --yes" in done.stderr
