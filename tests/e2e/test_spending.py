"""What agents cost, and who gets a gap instead; the whole program, with a scripted claude.

Each of its agents that does its work tells at its end that it has cost an eighth of a dollar.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import Settlement
from tests.builders import NOW
from tests.e2e.cli_repository import Repository, running
from tests.e2e.projects import EMPTY, Project, gaps

pytestmark = pytest.mark.timeout(240)

SCRIPT = Path(__file__).parent / "scripted_claude.py"

Make = Callable[..., Project]

ROUTES = """\
routes:
- candidates:
  - {backend: claude, why: the best}
  - {backend: custom, why: the next best}
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a project whose agents are claude's, on a machine where it is noon."""
    made: list[Project] = []
    (tmp_path / "sessions").mkdir()
    monkeypatch.setenv("CLAUDE_SCRIPT_FOLDER", str(tmp_path / "sessions"))
    monkeypatch.setenv("TZ", f"NOON{datetime.now(UTC).hour - 12:+d}")
    program = tmp_path / "claude"
    program.write_text(f"#!{sys.executable} -I\n{SCRIPT.read_text('utf-8')}")
    program.chmod(0o755)

    def project(entries: str, more: str) -> Project:
        options = f'[backend.claude]\nprogram = "{program}"\n'
        one = Project.make(tmp_path / f"p{len(made)}", entries, more=options + more, slots=1)
        settings = one.root / ".chump" / "orchestrator.toml"
        text = settings.read_text().replace('use = "custom"', 'use = "claude"', 1)
        settings.write_text(f"consent = true\n{text}")
        made.append(one)
        return one

    yield project
    for one in made:
        one.clean()


def set_budget(project: Project, before: str, after: str) -> None:
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace(before, after))


def test_a_night_ends_with_its_budget_and_everybody_says_so(make: Make) -> None:
    """Behaviour X3, C8."""
    project = make(gaps("A-1", "A-2", "A-3"), "[budget]\nusd_per_day = 0.2\n")

    done = project.program("run", "--once")
    status = project.json("status")["budget"]
    shown = project.program("status").stdout
    report = project.program("report").stdout
    refused = project.program("retry", "A-3")
    resumed = project.program("resume")
    why = project.json("why", "A-3")

    held = "budget reached until 00:00: $0.25 of $0.20 a day (budget.usd_per_day)"
    assert done.returncode == 0, done.stderr
    assert project.outcomes() == {"A-1": "shipped", "A-2": "shipped"}
    assert [line.split()[0] for line in done.stdout.splitlines() if held in line] == ["A-3"]
    assert '"event": "budget.reached"' in done.stderr or "budget.reached" in done.stderr
    assert (status["usd_today"], status["agents_today"]) == (0.25, 2)
    assert (status["reached"], status["at_work"]) == (["usd_per_day"], 0)
    assert "spent today: $0.25 of $0.20, 6,080 tokens; budget reached until 00:00" in shown
    assert "budget of today: $0.25 of $0.20, 6,080 tokens" in report
    assert refused.returncode == 1
    assert f"A-3 is not dispatched: {held}" in refused.stderr
    assert held in resumed.stdout
    assert held in why["reason"]

    set_budget(project, "usd_per_day = 0.2", "usd_per_day = 20")
    project.program("run", "--once")

    assert project.outcomes()["A-3"] == "shipped"
    assert project.left() == EMPTY


def test_a_reload_with_a_higher_budget_lets_a_daemon_go_on(make: Make) -> None:
    project = make(gaps("A-1", "A-2"), "[budget]\nusd_per_day = 0.1\n")
    project.start()

    def is_held() -> bool:
        told = project.program("why", "A-2").stdout
        return "budget reached until 00:00" in told

    project.eventually(is_held)
    project.eventually(lambda: "A-1" in project.outcomes())
    before = project.outcomes()
    set_budget(project, "usd_per_day = 0.1", "usd_per_day = 1")
    reloaded = project.program("reload")
    project.eventually(lambda: project.outcomes().get("A-2") == "shipped")
    project.program("drain")

    assert before == {"A-1": "shipped"}
    assert reloaded.returncode == 0, reloaded.stderr
    log = (project.folder / "daemon.log").read_text()
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = [one for one in events if one["event"].startswith("budget.")]
    assert [one["event"] for one in told] == ["budget.reached", "budget.renewed"]
    assert told[1]["why"] == "it was raised"


def test_a_gap_goes_to_the_next_candidate_when_nobody_is_logged_in_to_the_first(
    make: Make,
) -> None:
    """Behaviour G5: the gap has not failed, and `why` tells who handed it over."""
    entries = (
        "- {id: A-1, title: it is not logged in, priority: P1, effort: s, status: open}\n"
        "- {id: A-2, title: it ships, priority: P1, effort: s, status: open, depends_on: [A-1]}\n"
    )
    project = make(entries, "[routing]\ntable = 'routes.yaml'\n")
    (project.root / "routes.yaml").write_text(ROUTES)

    done = project.program("run", "--once")
    rows = project.json("history")["dispatches"]

    assert done.returncode == 0, done.stderr
    tried = [(one["gap"], one["backend"], one["outcome"], one["cause"]) for one in reversed(rows)]
    assert tried == [
        ("A-1", "claude", "killed", "auth"),
        ("A-1", "custom", "shipped", None),
        ("A-2", "custom", "shipped", None),
    ]
    assert "gap.handed_over" in done.stderr
    assert project.left() == EMPTY


def test_who_handed_a_gap_over_is_known_without_a_daemon(make: Make) -> None:
    project = make(
        "- {id: A-1, title: it is not logged in, priority: P1, effort: s, status: open}\n",
        "[routing]\ntable = 'routes.yaml'\n",
    )
    (project.root / "routes.yaml").write_text(ROUTES)

    project.program("run", "--once", "--limit", "1")
    why = project.json("why", "A-1")
    (picked,) = project.json("plan")["picked"]

    handed = [(one["backend"], one["handed_over"]) for one in why["candidates"]]
    assert handed == [("claude", "auth"), ("custom", None)]
    assert picked["backend"] == "custom"


async def two_dollars_on_demo_1(ledger: SqliteLedger) -> None:
    dispatch = await running(ledger, "DEMO-1")
    killed = Outcome(OutcomeKind.KILLED, "exit code 7", Cause.EXIT_CODE)
    spent = Settlement(killed, NOW, None, None, progress=False, siblings=0, cost_usd=2.0)
    await ledger.settle(dispatch, spent)


def test_a_gap_that_has_cost_too_much_is_held_without_a_daemon_too(repository: Repository) -> None:
    repository.write(".chump/orchestrator.toml", "[budget]\nusd_per_gap = 1.5\n")
    repository.in_ledger(two_dollars_on_demo_1)

    why = repository.say("why", "DEMO-1").out
    plan = repository.say("plan", "--json").json()
    released = repository.say("release", "DEMO-1").out
    after = repository.say("why", "DEMO-1").out

    held = "budget: $2.00 of $1.50 spent on it (budget.usd_per_gap)"
    assert held in why
    assert "DEMO-1" not in [one["id"] for one in plan["picked"]]
    assert released == "DEMO-1 is released\n"
    assert "it would be dispatched now" in after


def test_a_status_without_a_daemon_tells_what_today_has_cost(repository: Repository) -> None:
    repository.in_ledger(two_dollars_on_demo_1)

    budget = repository.say("status", "--json").json()["budget"]

    assert (budget["usd_today"], budget["agents_today"], budget["usd_per_day"]) == (0.0, 0, None)
    assert "spent today" not in repository.say("status").out
