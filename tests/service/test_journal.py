"""What a real journald makes of our records, and what `journalctl` finds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.projects import Project, gaps
from tests.service.a_journald import Journald, objection

pytestmark = pytest.mark.slow

AGENT = """\
if gap == "DEMO-2":
    print("WARN it will not work", file=sys.stderr)
    sys.exit(7)
ship()
"""


@pytest.fixture(scope="module")
def can_log() -> str:
    return objection()


@pytest.fixture
def journald(can_log: str) -> Iterator[Journald]:
    if can_log:
        pytest.skip(f"there can be no journal here: {can_log}")
    with Journald.running() as running:
        yield running


def test_a_run_can_be_searched_by_gap_by_dispatch_and_by_outcome(
    journald: Journald, tmp_path: Path
) -> None:
    project = Project.make(tmp_path, gaps("DEMO-1", "DEMO-2"), AGENT)
    try:
        code = journald.serve(
            sys.executable, "-m", "chump_orchestrator", "run", "--once", cwd=project.root
        )
    finally:
        project.clean()

    assert code == 1
    (failed,) = journald.records("GAP=DEMO-2", "EVENT=dispatch.settled")
    (shipped,) = journald.records("OUTCOME=shipped")
    wanted = ("SYSLOG_IDENTIFIER", "PRIORITY", "OUTCOME", "CAUSE", "REASON", "BACKEND", "ATTEMPT")
    assert [failed[name] for name in wanted] == [
        *("chump-orchestrator", "6", "killed", "exit-code", "exit code 7", "custom", "1")
    ]
    assert failed["MESSAGE"].startswith("dispatch.settled gap=DEMO-2 outcome=killed")
    assert shipped["GAP"] == "DEMO-1"
    assert shipped["_TRANSPORT"] == "journal"
    assert shipped["_UID"] == str(os.getuid())
    of_one = journald.records(f"DISPATCH={shipped['DISPATCH']}")
    assert [one["EVENT"] for one in of_one][-1] in ("dispatch.settled", "worktree.removed")
    assert {"dispatch.launched", "agent.exited"} <= {one["EVENT"] for one in of_one}
    everything = journald.records()
    ours = [one for one in everything if one["SYSLOG_IDENTIFIER"] == "chump-orchestrator"]
    assert all(one["_TRANSPORT"] == "journal" and one["EVENT"] for one in ours)
    told = [one for one in ours if one["EVENT"] == "dispatch.settled"]
    assert len(told) == 2
    assert not [one for one in everything if "WARN it will not work" in str(one.get("MESSAGE"))]


SAY = """\
import os, structlog
from chump_orchestrator import logs
logs.configure(journal_stream=os.environ["JOURNAL_STREAM"], secrets=("hush-hush-hush",))
log = structlog.get_logger()
log.error("a.large", text="x" * 3_000_000, lines="one\\ntwo")
log.warning("a.small", gap="A-1", text="hush-hush-hush")
try:
    raise ValueError("it broke")
except ValueError:
    log.exception("a.broken")
"""


def test_records_of_every_size_arrive_with_their_priority(
    journald: Journald, tmp_path: Path
) -> None:
    assert journald.serve(sys.executable, "-c", SAY, cwd=tmp_path) == 0

    large, small, broken = journald.records("SYSLOG_IDENTIFIER=chump-orchestrator")
    assert (large["EVENT"], large["PRIORITY"]) == ("a.large", "3")
    assert large["TEXT"] == "x" * 3_000_000
    assert large["LINES"] == "one\ntwo"
    assert (small["TEXT"], small["PRIORITY"]) == ("[redacted]", "4")
    assert broken["MESSAGE"].splitlines()[-1] == "ValueError: it broke"
    assert [one["EVENT"] for one in journald.records("--priority=err")] == ["a.large", "a.broken"]


def test_without_its_socket_the_lines_still_have_their_priority(
    journald: Journald, tmp_path: Path
) -> None:
    journald.run("rm", "/run/systemd/journal/socket")

    assert journald.serve(sys.executable, "-c", SAY, cwd=tmp_path) == 0

    found = journald.records("_TRANSPORT=stdout")
    (small,) = (one for one in found if str(one["MESSAGE"]).startswith("a.small"))
    assert small["MESSAGE"] == "a.small gap=A-1 text=[redacted]"
    assert small["PRIORITY"] == "4"
    (broken,) = (one for one in found if one["MESSAGE"] == "ValueError: it broke")
    assert broken["PRIORITY"] == "3"
