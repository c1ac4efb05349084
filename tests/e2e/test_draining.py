"""The whole program on real repositories: a backlog drained, and everything that may go wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.projects import EMPTY, Make, gaps

pytestmark = pytest.mark.timeout(240)

FAMILY = """\
def stubborn():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
def stay():
    while True:
        time.sleep(1)
if gap == "SLOW-1":
    stubborn()
    if os.fork() == 0:
        stay()
    if os.fork() == 0:
        os.setsid()
        stay()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            stay()
        os._exit(0)
    stay()
ship()
"""


def test_forty_gaps_through_twenty_slots_all_ship(make: Make) -> None:
    """Their agents commit, push and merge at once; no lock of git's reaches anyone."""
    ids = [f"MANY-{n}" for n in range(40)]
    project = make(gaps(*ids), slots=20)

    done = project.program("run", "--once")

    assert done.returncode == 0, done.stderr
    assert project.outcomes() == dict.fromkeys(ids, "shipped")
    assert project.left() == EMPTY
    assert "lock" not in done.stderr.lower()
    assert len(project.reflections()) == 40


def test_a_stubborn_family_is_gone_at_the_deadline_and_others_go_on(make: Make) -> None:
    """Behaviour P2, promise I3: plain, setsid and double-forked children that ignore TERM."""
    project = make(
        "- {id: SLOW-1, title: t, priority: P0, effort: s, status: open, deadline: 2s}\n"
        + gaps("FAST-1", "FAST-2", "FAST-3"),
        FAMILY,
    )

    began = time.monotonic()
    done = project.program("run", "--once")
    took = time.monotonic() - began

    assert done.returncode == 1
    (slow,) = (d for d in project.json("history")["dispatches"] if d["gap"] == "SLOW-1")
    assert (slow["outcome"], slow["cause"]) == ("killed", "deadline")
    assert slow["active_s"] < 2 * 2 + 2 + 2 + 10  # deadline, grace, and a busy machine's slack
    assert project.outcomes() == {
        "SLOW-1": "killed",
        **dict.fromkeys(("FAST-1", "FAST-2", "FAST-3"), "shipped"),
    }
    assert project.left() == EMPTY
    assert took < 60


def test_after_a_sigkill_the_next_daemon_goes_on_with_the_same_agents(make: Make) -> None:
    """Promises I2 and I8: the same pids, exact exit codes, one reflection each."""
    project = make(
        gaps("LIVE-1", "DEAD-1"),
        "import pathlib\n"
        "flag = pathlib.Path(os.environ['PROJECT_FLAGS'], gap)\n"
        "while not flag.exists():\n"
        "    time.sleep(0.05)\n"
        "if gap == 'DEAD-1':\n"
        "    sys.exit(42)\n"
        "ship()",
    )
    flags = project.folder / "flags"
    flags.mkdir()

    def pids() -> dict[str, int]:
        told = project.json("status")["dispatches"]
        return {d["gap"]: d["pid"] for d in told if d["pid"]}

    first = project.start(PROJECT_FLAGS=str(flags))
    before = project.eventually(lambda: found if len(found := pids()) == 2 else None)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (flags / "DEAD-1").touch()  # it ends while nobody looks
    project.eventually(lambda: list(project.state.glob("d/dead-1-*/exit.json")))
    project.start(PROJECT_FLAGS=str(flags))
    project.eventually(lambda: pids() == {"LIVE-1": before["LIVE-1"]})
    assert os.getpgid(before["LIVE-1"]) == before["LIVE-1"]
    (flags / "LIVE-1").touch()
    project.eventually(lambda: len(project.reflections()) == 2)

    assert [row.partition(" duration_s")[0] for row in sorted(project.reflections())] == [
        "DEAD-1 outcome=killed",
        "LIVE-1 outcome=shipped",
    ]
    told = {d["gap"]: d for d in project.json("history")["dispatches"]}
    assert told["DEAD-1"]["reason"] == "exit code 42"
    assert told["LIVE-1"]["outcome"] == "shipped"


def test_sigterm_tears_down_and_leaves_nothing(make: Make) -> None:
    project = make(gaps("LONG-1", "LONG-2"), "time.sleep(600)")

    daemon = project.start()
    project.eventually(lambda: len(list(project.state.glob("d/*/running.json"))) == 2)
    daemon.send_signal(signal.SIGTERM)
    code = daemon.wait(60)

    assert code == 0
    assert project.outcomes() == {"LONG-1": "cancelled", "LONG-2": "cancelled"}
    assert project.left() == EMPTY


def test_drain_lets_agents_finish(make: Make) -> None:
    project = make(gaps("LONG-1", "LATE-1"), "time.sleep(2)\nship()", slots=1)

    daemon = project.start()
    project.eventually(lambda: list(project.state.glob("d/*/running.json")))
    asked = project.program("drain")
    code = daemon.wait(60)

    assert (asked.returncode, code) == (0, 0)
    assert list(project.outcomes()) == ["LONG-1"]


def test_a_second_daemon_on_the_same_repository_is_refused(make: Make, tmp_path: Path) -> None:
    """Exit code 75; also through a symlinked path."""
    project = make(gaps("LONG-1"), "time.sleep(600)")
    project.start()
    project.eventually(lambda: list(project.state.glob("d/*/running.json")))
    (tmp_path / "link").symlink_to(project.root)

    second = project.program("run")
    third = project.program("run", "--repo-root", str(tmp_path / "link"))

    assert (second.returncode, third.returncode) == (75, 75)
    assert len(list(project.state.glob("d/*"))) == 1


def test_an_orchestrator_inside_an_agent_does_not_dispatch(make: Make) -> None:
    """Behaviour D6: exit code 78, and why."""
    project = make(gaps("A-1"))

    done = project.program("run", "--once", CHUMP_DISPATCH_DEPTH="1")

    assert done.returncode == 78
    assert "CHUMP_DISPATCH_DEPTH" in done.stderr
    assert not list(project.state.glob("d/*"))


@pytest.mark.parametrize(
    ("agent", "outcome"),
    [
        pytest.param(
            "import subprocess\nsubprocess.Popen(['sleep', '600'], start_new_session=True)\nship()",
            "shipped",
            id="20: a grandchild holds stderr",
        ),
        pytest.param(
            "chunk = b'x' * (1 << 20)\nfor _ in range(1024):\n    os.write(2, chunk)\nsys.exit(3)",
            "killed",
            id="24: a gigabyte of stderr without a newline",
        ),
        pytest.param(
            "os.write(2, b'ERROR \\xff\\xfe\\x00 \\x1b[31m \\xe2\\x80\\xae end\\n')\nsys.exit(3)",
            "killed",
            id="25: what is no text",
        ),
    ],
)
def test_what_agents_do_to_their_streams(make: Make, agent: str, outcome: str) -> None:
    """Cases 20, 24 and 25 of the fault catalogue."""
    project = make(gaps("ODD-1"), agent)

    project.program("run", "--once")

    assert project.outcomes() == {"ODD-1": outcome}
    assert project.left()["processes"] == []
    assert len(project.reflections()) == 1
    logs = sum(log.stat().st_size for log in project.state.glob("d/*/stderr*.log"))
    assert logs < 16 << 20


def test_a_brief_that_nobody_reads_holds_nothing_up(make: Make) -> None:
    """Case 27: five megabytes."""
    project = make(gaps("BIG-1"), "ship()")
    rules = project.root / "docs" / "CHUMP_DISPATCH_RULES.md"
    rules.write_text("rule\n" * (1 << 20))
    project.git("add", "docs")
    project.git("-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "Rules")
    project.git("push", "-q", "origin", "main")

    done = project.program("run", "--once")

    assert done.returncode == 0, done.stderr
    assert project.outcomes() == {"BIG-1": "shipped"}


def test_a_failed_gap_is_explained_and_freed_by_hand(make: Make) -> None:
    """Behaviour X1 and X2."""
    project = make(gaps("BAD-1"), "sys.exit(9)")

    project.program("run", "--once")
    why = project.program("why", "BAD-1").stdout
    again = project.program("run", "--once")
    freed = project.program("release", "BAD-1")
    project.program("run", "--once")

    assert "parked" in why
    assert "exit code 9" in why
    assert again.returncode == 0
    assert freed.returncode == 0
    assert len(project.reflections()) == 2


def test_the_operator_s_checkout_is_never_touched(make: Make) -> None:
    """Behaviour D9: branch, index, stash and uncommitted work stay as they were."""
    project = make(gaps("A-1", "A-2"))
    (project.root / "README").write_text("half done")
    project.git("add", "README")
    (project.root / "notes").write_text("mine")
    before = project.git("status", "--porcelain", "--branch")

    project.program("run", "--once")

    assert (
        project.git("status", "--porcelain", "--branch").split("\n")[1:] == before.split("\n")[1:]
    )
    assert project.git("symbolic-ref", "HEAD") == "refs/heads/main\n"
    assert project.outcomes() == {"A-1": "shipped", "A-2": "shipped"}


def test_an_agent_sees_no_foreign_secret(make: Make) -> None:
    """Promise I7: the environment is an allow-list, and logs are redacted."""
    project = make(
        gaps("A-1"),
        "print(sorted(os.environ), file=sys.stderr)\n"
        "print('ERROR', os.environ['PROJECT_TOKEN'], file=sys.stderr)\nship()",
    )

    project.program(
        "run", "--once", PROJECT_TOKEN="tell-nobody-1234", OTHER_SECRET="never-passed-5678"
    )

    logs = "".join(p.read_text() for p in project.state.glob("d/*/stderr.log"))
    everything = b"".join(p.read_bytes() for p in project.state.rglob("*") if p.is_file())
    assert "OTHER_SECRET" not in logs
    assert b"tell-nobody-1234" not in everything
    assert "[redacted]" in logs


def test_status_and_logs_while_an_agent_runs(make: Make) -> None:
    project = make(
        gaps("LONG-1"), "print('WARN: at work', file=sys.stderr, flush=True)\ntime.sleep(600)"
    )
    nobody = project.program("status", "--json")
    project.start()
    project.eventually(lambda: "at work" in project.program("logs", "LONG-1").stdout)

    told = project.json("status")

    assert nobody.returncode == 3
    assert json.loads(nobody.stdout)["daemon"] is None
    assert told["daemon"]["state"] == "running"
    assert told["slots"] == {"used": 1, "total": 2}
    (dispatch,) = told["dispatches"]
    assert Path(dispatch["worktree"]).is_absolute()
    assert dispatch["pid"] > 0


def test_a_pause_lasts_over_restarts(make: Make) -> None:
    """Behaviour C7."""
    project = make(gaps("A-1"))

    project.program("pause")
    project.program("run", "--once")
    before = project.outcomes()
    project.program("resume")
    project.program("run", "--once")

    assert (before, project.outcomes()) == ({}, {"A-1": "shipped"})
