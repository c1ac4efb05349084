"""Commands that only look at the backlog: plan, why, backlog check, and the flags without one."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from chump_orchestrator.adapters.journal import SqliteJournal
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.core.gap import Effort
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from chump_orchestrator.core.records import Pause
from chump_orchestrator.core.reflection import Reflection
from tests.backlog_fixture import backlog
from tests.builders import NOW, a_reflection
from tests.e2e.cli_repository import Repository, a_quiet_log, ended, running


@pytest.fixture
def repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    root = tmp_path / "Repo"
    root.mkdir()
    monkeypatch.chdir(root)
    with a_quiet_log():
        yield Repository(root, capsys)


def everything_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_without_a_command_the_choice_is_printed_as_the_first_implementation_did(
    repository: Repository,
) -> None:
    """Behaviour C2."""
    said = repository.say()

    assert said.code == 0
    headline, *lines = said.out.splitlines()
    assert "DEMO" not in headline
    assert lines == [
        "WOULD DISPATCH: DEMO-1 (prio=P1 effort=xs) in ./.claude/worktrees/demo-1"
        "  -- Add a greeting",
        "WOULD DISPATCH: DEMO-4 (prio=P1 effort=m) in ./.claude/worktrees/demo-4  -- Say more",
    ]
    assert repository.say("--dry-run", "--watch").out == said.out


def test_flags_without_a_command_change_the_choice(repository: Repository) -> None:
    """Behaviour C2; `--backlog` is relative to the current directory."""
    repository.write(
        "docs/sub/other.yaml", "gaps: [{id: OTHER-1, priority: P0, effort: m, status: open}]"
    )

    one = repository.say("--max-parallel", "1")
    other = repository.say("--backlog", "docs/sub/other.yaml", "--base-ref", "no/such-ref")

    assert one.out.count("WOULD DISPATCH") == 1
    assert "WOULD DISPATCH: OTHER-1" in other.out


def test_a_backlog_that_is_named_is_read_as_it_lies_there(repository: Repository) -> None:
    """Settings may read theirs from a ref, which has no such file."""
    repository.write(".chump/orchestrator.toml", "backlog.ref = 'main'")
    repository.write(
        "docs/sub/other.yaml", "gaps: [{id: OTHER-1, priority: P0, effort: m, status: open}]"
    )

    said = repository.say("plan", "--backlog", "docs/sub/other.yaml")

    assert said.code == 0
    assert "OTHER-1" in said.out


def test_an_empty_choice_is_a_note_and_no_failure(repository: Repository) -> None:
    """Behaviour C2."""
    repository.write("docs/gaps.yaml", "gaps: []")

    said = repository.say()

    assert (said.code, said.out) == (0, "")
    assert "nothing to dispatch" in said.err


def test_contradicting_flags_are_refused(repository: Repository) -> None:
    said = repository.say("--execute", "--dry-run")

    assert said.code == 2
    assert "contradict" in said.err


@pytest.mark.parametrize("flag", ["--watch", "--execute", "--no-reflect", "--max-parallel=1"])
def test_flags_of_the_first_implementation_are_not_lost_before_a_command(
    repository: Repository, flag: str
) -> None:
    said = repository.say(flag, "plan")

    assert said.code == 2
    assert "behind it" in said.err


def test_plan_has_the_shape_that_others_read(repository: Repository) -> None:
    """Behaviour C6, K5: needs no commit, no remote, no forge, no daemon."""
    repository.write(
        "docs/gaps.yaml",
        (repository.root / "docs/gaps.yaml").read_text()
        + "  - {id: bad, title: Bad, priority: P1, effort: m, status: open}\n",
    )
    root = repository.root

    said = repository.say("plan", "--json")

    document = said.json()
    (left_out,) = document.pop("rejected")
    assert said.code == 0
    assert document == {
        "schema_version": 1,
        "total": 7,
        "open": 6,
        "done": 1,
        "picked": [
            {
                "id": "DEMO-1",
                "priority": "P1",
                "effort": "xs",
                "title": "Add a greeting",
                "branch": "claude/demo-1",
                "worktree": str(root / ".claude/worktrees/demo-1"),
                "backend": "claude",
                "model": None,
            },
            {
                "id": "DEMO-4",
                "priority": "P1",
                "effort": "m",
                "title": "Say more",
                "branch": "claude/demo-4",
                "worktree": str(root / ".claude/worktrees/demo-4"),
                "backend": "claude",
                "model": None,
            },
        ],
        "refused": [
            {"id": "DEMO-5", "reason": "no slot, place 3"},
            {"id": "DEMO-2", "reason": "waits for DEMO-1, whose status is open"},
            {
                "id": "DEMO-3",
                "reason": "priority P3 is not among P0 P1 P2 (pick.priorities)",
            },
        ],
    }
    assert left_out.keys() == {"id", "reason", "file", "line", "column"}
    assert left_out["id"] == "bad"
    assert Path(left_out["file"]).is_absolute()


def test_plan_changes_nothing(repository: Repository) -> None:
    """Behaviour C6."""
    before = everything_below(repository.root)

    repository.say("plan")
    repository.say("plan", "--explain")
    repository.say("why", "DEMO-1")
    repository.say("status")
    repository.say("history")
    repository.say()

    assert everything_below(repository.root) == before


def test_a_real_backlog_has_a_reason_for_every_open_gap_that_is_not_picked(
    repository: Repository,
) -> None:
    """Behaviour B4, K5."""
    repository.write("docs/gaps.yaml", backlog())

    document = repository.say("plan", "--json").json()

    assert (document["total"], document["open"], document["done"]) == (543, 113, 423)
    told = {one["id"] for one in document["picked"] + document["refused"] + document["rejected"]}
    assert len(document["picked"]) == 2
    assert len(told) == 113


def test_plan_for_people_names_what_it_would_do_and_why_not_the_rest(
    repository: Repository,
) -> None:
    """Behaviour K5."""
    brief = repository.say("plan")
    full = repository.say("plan", "--explain")

    assert "claude/demo-1" in brief.out
    assert "3 open gaps are not picked" in brief.err
    assert "waits for DEMO-1" not in brief.out
    assert "waits for DEMO-1" in full.out
    assert "no slot, place 3" in full.out


@pytest.mark.parametrize("where", ["docs", ".linked"])
def test_the_main_work_tree_is_found_from_below_and_from_a_linked_one(
    repository: Repository, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour C1."""
    repository.commit()
    repository.git("worktree", "add", "-q", "-b", "side", ".linked")
    monkeypatch.chdir(repository.root / where)

    picked = repository.say("plan", "--json").json()["picked"]

    assert picked[0]["worktree"] == str(repository.root / ".claude/worktrees/demo-1")


@pytest.mark.parametrize(
    "arguments",
    [("--repo-root", "Repo", "plan", "--json"), ("plan", "--json", "--repo-root", "Repo")],
)
def test_the_repository_may_be_named_before_and_behind_the_command(
    repository: Repository, arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behaviour C1."""
    monkeypatch.chdir(repository.root.parent)

    assert repository.say(*arguments).json()["total"] == 6


@pytest.mark.parametrize("is_packed", [False, True])
def test_names_in_the_way_are_counted_on(repository: Repository, *, is_packed: bool) -> None:
    """Behaviour D1."""
    repository.commit()
    repository.git("branch", "claude/demo-1")
    repository.git("branch", "claude/demo-4/deeper")
    repository.git("update-ref", "refs/remotes/origin/claude/demo-4-r2", "HEAD")
    (repository.root / ".claude/worktrees/demo-1-r2").mkdir(parents=True)
    if is_packed:
        repository.git("pack-refs", "--all")

    picked = repository.say("plan", "--json").json()["picked"]

    assert [one["branch"] for one in picked] == ["claude/demo-1-r3", "claude/demo-4-r3"]
    assert picked[0]["worktree"].endswith("/demo-1-r3")
    assert "./.claude/worktrees/demo-1-r3  --" in repository.say().out


def test_agents_that_run_leave_fewer_slots(repository: Repository) -> None:
    """Behaviour K1, K4."""
    repository.in_ledger(lambda ledger: running(ledger, "DEMO-1"))

    said = repository.say("plan", "--json")

    document = said.json()
    reasons = {one["id"]: one["reason"] for one in document["refused"]}
    assert [one["id"] for one in document["picked"]] == ["DEMO-4"]
    assert reasons["DEMO-1"] == "active: demo-1-x-1"
    assert "1 of 2 slots are taken" in said.err


def test_what_we_shipped_counts_as_done(repository: Repository) -> None:
    """Behaviour B6."""
    repository.in_ledger(lambda ledger: ended(ledger, "DEMO-1", Outcome(OutcomeKind.SHIPPED)))

    document = repository.say("plan", "--json").json()

    assert document["done"] == 2
    assert [one["id"] for one in document["picked"]] == ["DEMO-2", "DEMO-4"]


@pytest.mark.parametrize(
    ("gap", "state", "reason"),
    [
        ("DEMO-1", "picked", "it would be dispatched now, place 1"),
        ("DEMO-2", "refused", "waits for DEMO-1, whose status is open"),
        ("DEMO-5", "waiting", "no slot, place 3"),
        ("DEMO-6", "done", "it is done"),
        ("DEMO-7", "refused", "its status is deferred"),
        ("DEMO-8", "rejected", "depends_on: the gap depends on itself"),
    ],
)
def test_why_has_a_reason_for_every_gap(
    repository: Repository, gap: str, state: str, reason: str
) -> None:
    """Behaviour K5."""
    repository.write(
        "docs/gaps.yaml",
        (repository.root / "docs/gaps.yaml").read_text()
        + "  - {id: DEMO-7, status: deferred}\n"
        + "  - {id: DEMO-8, status: open, depends_on: DEMO-8}\n",
    )

    said, document = repository.say("why", gap), repository.say("why", gap, "--json").json()

    assert said.code == 0
    assert said.out.startswith(f"{gap}: ")
    assert reason in said.out
    assert (document["id"], document["state"]) == (gap, state)
    assert reason in document["reason"]


def test_why_of_a_gap_that_is_nowhere_fails_and_guesses(repository: Repository) -> None:
    said = repository.say("why", "demo-1")

    assert (said.code, said.out) == (1, "")
    assert "did you mean DEMO-1?" in said.err


def test_backlog_check_fails_when_an_entry_cannot_be_used(repository: Repository) -> None:
    fine = repository.say("backlog", "check")
    repository.write("docs/gaps.yaml", "gaps: [{id: bad, status: open}, {id: A-1, status: open}]")
    broken = repository.say("backlog", "check")
    document = repository.say("backlog", "check", "--json").json()

    assert (fine.code, fine.out) == (0, "")
    assert broken.code == 1
    assert "bad: left out: bad id" in broken.out
    assert broken.out.startswith(str(repository.root / "docs/gaps.yaml") + ":1:")
    assert (document["total"], document["open"], document["done"]) == (2, 2, 0)
    assert [one["id"] for one in document["rejected"]] == ["bad"]
    assert document["warnings"] == []


def test_a_backlog_that_is_not_there_is_the_operators_to_mend(repository: Repository) -> None:
    """Behaviour C3."""
    (repository.root / "docs/gaps.yaml").unlink()

    said = repository.say("plan")

    assert (said.code, said.out) == (78, "")
    assert "gaps.yaml" in said.err


def test_titles_cannot_steer_a_terminal(repository: Repository) -> None:
    repository.write(
        "docs/gaps.yaml",
        'gaps: [{id: A-1, priority: P0, effort: s, status: open, title: "a\\e[31mb\\nc"}]',
    )

    assert "\x1b" not in repository.say().out + repository.say("plan").out


def test_texts_of_the_backlog_forge_no_lines(repository: Repository) -> None:
    """Promise I7: what the backlog says stays where it is told."""
    repository.write(
        "docs/gaps.yaml",
        "gaps:\n"
        '- {id: A-1, status: open, priority: P1, effort: xs, title: "t\\nFORGED \\e[2J"}\n'
        '- {id: A-2, status: open, priority: P1, depends_on: ["X\\nFORGED: done \\e[2J"]}\n'
        '- {id: "A-3\\nFORGED", status: open}\n',
    )
    repository.in_ledger(lambda ledger: ledger.set_pause(Pause("you", "x\nFORGED", NOW)))

    for arguments in (
        ("why", "A-1"),
        ("why", "A-2"),
        ("plan", "--explain"),
        ("backlog", "check"),
        ("status",),
        (),
    ):
        said = repository.say(*arguments)
        lines = (said.out + said.err).splitlines()
        assert not [line for line in lines if line.startswith("FORGED")], arguments
        assert "\x1b" not in said.out + said.err, arguments
    assert "FORGED" in repository.say("why", "A-2").out


def test_a_dry_run_without_a_free_slot_says_so(repository: Repository) -> None:
    """Behaviour C2."""

    async def two(ledger: SqliteLedger) -> None:
        await running(ledger, "DEMO-4")
        await running(ledger, "DEMO-5")

    repository.in_ledger(two)
    full = repository.say()
    repository.write("docs/gaps.yaml", "gaps: []")
    empty = repository.say()

    assert (full.code, full.out, empty.code, empty.out) == (0, "", 0, "")
    assert "no slot is free" in full.err
    assert "no open gap is eligible" in empty.err


TWO_CANDIDATES = """
routes:
  - match: {priority: P1, effort: [xs, s]}
    why: small
    candidates: [{backend: claude, model: opus, why: best}, {backend: codex}]
"""


def a_journal_of(root: Path, *reflections: Reflection) -> None:
    async def write() -> None:
        memory, state = root / "sessions/chump_memory.db", root / ".chump/state.db"
        async with SqliteJournal(reflections=memory, routing=state) as journal:
            for one in reflections:
                await journal.record(one)

    anyio.run(write)


def test_where_gaps_go_is_shown_with_how_it_went(repository: Repository) -> None:
    """Behaviour C1, G4."""
    repository.write("docs/dispatch/routing.yaml", TWO_CANDIDATES)
    now = datetime.now(UTC)
    a_journal_of(
        repository.root,
        a_reflection("one", model="opus", cost_usd=1.5, ended_at=now),
        a_reflection("two", backend="codex", outcome=OutcomeKind.KILLED, ended_at=now),
    )

    said, document = repository.say("routes"), repository.say("routes", "--json").json()

    assert [" ".join(line.split()) for line in said.out.splitlines()] == [
        "ROUTE GAPS CANDIDATE WHY",
        "1 priority P1, effort s or xs claude opus small; best",
        "1 priority P1, effort s or xs codex small",
        "default all others claude backend.use",
        "",
        "CLASS EFFORT CANDIDATE SHIPPED FAILED COST",
        "- s claude opus 1.0 0.0 $1.50",
        "- s codex 0.0 1.0 -",
    ]
    assert "routing.learn = true ranks them" in said.err
    assert document["learns"] is False
    assert document["routes"][0]["match"] == {
        "priority": ["P1"],
        "effort": ["s", "xs"],
        "task_class": [],
    }
    assert [one["cost_usd"] for one in document["experience"]] == [1.5, None]


def test_a_plan_that_learns_asks_who_ships(repository: Repository) -> None:
    """Behaviour G4: as the daemon would, and with the odds."""
    repository.write("docs/dispatch/routing.yaml", TWO_CANDIDATES)
    repository.write(".chump/orchestrator.toml", "routing.learn = true")
    now = datetime.now(UTC)
    several = {"effort": Effort.XS, "ended_at": now}
    a_journal_of(
        repository.root,
        *(a_reflection(f"a-{n}", backend="codex", **several) for n in range(30)),
        *(
            a_reflection(f"b-{n}", model="opus", outcome=OutcomeKind.STALLED, **several)
            for n in range(30)
        ),
    )

    picked = repository.say("plan", "--json").json()["picked"]
    candidates = repository.say("why", "DEMO-1", "--json").json()["candidates"]

    assert picked[0]["id"] == "DEMO-1"
    assert picked[0]["backend"] == "codex"
    assert [one["backend"] for one in candidates] == ["codex", "claude"]
    assert candidates[0]["odds"] > 0.999


def test_a_malformed_table_is_told_by_routes(repository: Repository) -> None:
    repository.write("docs/dispatch/routing.yaml", "routes: [{candidates: [{backend: nobody}]}]")

    said = repository.say("routes")

    assert said.code == 78
    assert "no backend named 'nobody'" in said.err
