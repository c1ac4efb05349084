"""The whole program with `gh`: its silences stop nobody and settle nothing; only ours is ours."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.adapters.fake_gh import FakeGh
from tests.e2e.projects import Project, gaps

pytestmark = pytest.mark.timeout(240)

SILENCES = ("502", "html", "{}", "empty", "null-repository")

AGENT = """\
import pathlib
flag = pathlib.Path(os.environ["PROJECT_FLAGS"], gap)
while not flag.exists():
    time.sleep(0.05)
ship(merge=False)
"""


@pytest.fixture
def forge(tmp_path: Path) -> Iterator[tuple[Project, FakeGh, Path]]:
    """A project whose agent waits for a flag, then pushes; and the forge it is on."""
    gh = FakeGh(tmp_path / "bin")
    project = Project.make(tmp_path / "p", gaps("OURS-1"), AGENT)
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace('use = "git"', 'use = "gh"'))
    flags = tmp_path / "flags"
    flags.mkdir()
    yield project, gh, flags
    project.clean()


def start(project: Project, gh: FakeGh, flags: Path) -> None:
    path = f"{gh.folder}:{os.environ['PATH']}"
    project.start("--once", PATH=path, GH_REPO="acme/anvil", PROJECT_FLAGS=str(flags))


def test_a_forge_that_gives_no_answer_stops_nobody_and_settles_nothing(
    forge: tuple[Project, FakeGh, Path],
) -> None:
    """Behaviour P3: no news is no bad news; the verdict comes with the first answer."""
    project, gh, flags = forge

    def is_silent(kind: str, looks: int) -> None:
        """Have so many looks met with this kind of silence."""
        gh.answers(kind)
        before = len(gh.calls)
        project.eventually(lambda: len(gh.calls) >= before + looks)
        assert project.outcomes() == {}, kind

    gh.answers(SILENCES[0])
    start(project, gh, flags)
    project.eventually(lambda: list(project.state.glob("d/*/running.json")))
    for kind in SILENCES:
        is_silent(kind, 1)
    assert not list(project.state.glob("d/*/exit.json"))
    (flags / "OURS-1").touch()
    project.eventually(lambda: list(project.state.glob("d/*/exit.json")))
    for kind in SILENCES:
        is_silent(kind, 2)

    head = project.git("rev-parse", "refs/remotes/origin/claude/ours-1").strip()
    gh.request(7, "claude/ours-1", head, datetime.now(UTC), state="MERGED")
    gh.answers("ok")
    project.eventually(project.outcomes)

    (told,) = project.json("history")["dispatches"]
    assert (told["outcome"], told["pull"]) == ("shipped", 7)
    exited = json.loads(next(project.state.glob("d/*/exit.json")).read_text())
    assert (exited["code"], exited["killed_by"]) == (0, None)


@pytest.mark.parametrize("stranger", ["a fork's", "an older attempt's"])
def test_another_request_of_the_same_branch_name_is_not_taken_for_ours(
    forge: tuple[Project, FakeGh, Path], stranger: str
) -> None:
    """Behaviour P6."""
    project, gh, flags = forge
    base = project.git("rev-parse", "HEAD").strip()
    is_fork = stranger == "a fork's"
    created = datetime.now(UTC) + (timedelta(0) if is_fork else -timedelta(days=2))
    gh.request(3, "claude/ours-1", base, created, state="MERGED", fork=is_fork)
    start(project, gh, flags)
    project.eventually(lambda: list(project.state.glob("d/*/running.json")))
    (flags / "OURS-1").touch()
    project.eventually(project.outcomes)

    (told,) = project.json("history")["dispatches"]
    assert (told["outcome"], told["cause"], told["pull"]) == ("stalled", "no-pr", None)
