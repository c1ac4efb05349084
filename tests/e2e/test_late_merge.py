"""The whole program and a request that is merged after it was given up (behaviour P5)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.projects import Project, gaps

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project without a forge, whose agent pushes and leaves the merge to somebody."""
    made = Project.make(tmp_path / "p", gaps("LATE-1"), "ship(merge=False)")
    settings = made.root / ".chump" / "orchestrator.toml"
    text = settings.read_text().replace('interval = "1s"', 'interval = "1s"\ndeadline = "3s"')
    settings.write_text(text + '[log]\nformat = "json"\n')
    yield made
    made.clean()


def merge(project: Project) -> None:
    """Merge the branch on the remote, as a person would with a squash."""
    elsewhere = project.folder / "elsewhere"
    who = ("-c", "user.name=P", "-c", "user.email=p@example.org")
    project.git("clone", "-q", str(project.origin), str(elsewhere), at=project.folder)
    project.git("merge", "-q", "--squash", "origin/claude/late-1", at=elsewhere)
    project.git(*who, "commit", "-q", "-m", "Squashed", at=elsewhere)
    project.git("push", "-q", "origin", "main", at=elsewhere)


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def test_a_late_merge_puts_everything_right(project: Project) -> None:
    first = project.program("run", "--once")
    (before,) = project.json("history")["dispatches"]
    merge(project)
    second = project.program("run", "--once")
    (after,) = project.json("history")["dispatches"]
    why, report = project.json("why", "LATE-1"), project.json("report", "--since", "1h")

    assert (first.returncode, before["outcome"], before["corrected_at"]) == (1, "stalled", None)
    assert second.returncode == 0, second.stderr
    assert (after["outcome"], after["cause"], after["corrected_from"]) == (
        *("shipped", None),
        "stalled",
    )
    assert after["reason"] == "branch claude/late-1 merged, after it had counted as stalled"
    assert after["corrected_at"] >= before["ended_at"] == after["ended_at"]  # in whole seconds
    assert (why["state"], report["failed"]) == ("refused", [])
    assert [one["gap"] for one in report["shipped"]] == ["LATE-1"]
    events = [json.loads(line) for line in second.stderr.splitlines() if line.startswith("{")]
    assert [one["was"] for one in events if one["event"] == "dispatch.corrected"] == ["stalled"]
    memory, state = project.root / "sessions/chump_memory.db", project.root / ".chump/state.db"
    query = "SELECT observed_outcome, outcome_class FROM chump_reflections"
    ((outcome, kind),) = rows(memory, query)
    assert (str(outcome).split()[0], kind) == ("outcome=shipped", "success")
    assert rows(state, "SELECT gap_id, outcome FROM routing_outcomes") == [("LATE-1", "shipped")]
