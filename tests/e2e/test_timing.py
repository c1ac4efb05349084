"""Where the time of a dispatch goes, as `self-test --timing` tells it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chump_orchestrator import throwaway, timing
from chump_orchestrator.core.errors import Refused

BACKLOG = "gaps:\n" + "".join(
    f"- {{id: TIMED-{number}, title: One, priority: P1, effort: s, status: open}}\n"
    for number in range(1, 4)
)


@pytest.fixture
async def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(timing, "REST_S", 0)
    made, _ = await throwaway.repository("timing", BACKLOG, "")
    return made


async def test_the_phases_of_each_dispatch_make_up_all_of_its_way(root: Path) -> None:
    found = await timing.profile(root, gaps=["TIMED-1", "TIMED-2", "TIMED-3"])

    assert list(found.phases) == list(timing.PHASES)
    assert [len(values) for values in found.phases.values()] == [2] * len(timing.PHASES)
    for number, total in enumerate(found.total):
        assert total > 0
        assert sum(values[number] for values in found.phases.values()) == pytest.approx(total)
    # What a launch cannot do without takes its time in each of them; a shim may be there before.
    for phase in ("propose", "ledger", "worktree"):
        assert min(found.phases[phase]) > 0
    table = timing.table(found)
    assert [line.split()[0] for line in table] == ["phase", *timing.PHASES, "total"]
    assert f"{statistics.median(found.total):.1f}" in table[-1]


async def test_gaps_that_had_no_agent_are_no_profile(root: Path) -> None:
    with pytest.raises(Refused, match="TIMED-9"):
        await timing.profile(root, gaps=["TIMED-1", "TIMED-2", "TIMED-9"])


def test_the_option_is_told_of() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "chump_orchestrator", "self-test", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert "--timing" in told
