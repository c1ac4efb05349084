"""The whole program, shipping for agents that have no token and no right to push (P9)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.a_shipment import token
from tests.adapters.fake_gh import FakeGh
from tests.e2e.projects import Project, gaps

pytestmark = pytest.mark.timeout(240)

AGENT = """\
with open(os.path.join(os.environ["PROJECT_NOTES"], gap + ".env"), "w") as file:
    for name, value in sorted(os.environ.items()):
        file.write(name + "=" + value + "\\n")
def commit(name, text):
    with open(name, "w") as file:
        file.write(text)
    git("add", "--", name)
    git("commit", "-q", "-m", "work on " + gap)
"""

SHIP = """
[ship]
by = "daemon"
labels = ["agent"]
auto_merge = "squash"
"""

TOKEN = "gh" + "o_" + "TheDaemonsOwnTokenThatAgentsNeverSee123"


class Site:
    """A project on the small forge, its daemon shipping."""

    def __init__(self, folder: Path, agent: str, *ids: str, more: str = SHIP) -> None:
        entry = {"acceptance_criteria": '["it works, @everyone", "closes #1"]'}
        self.project = Project.make(folder / "p", gaps(*ids, **entry), AGENT + agent, more=more)
        self.gh = FakeGh(folder / "bin", origin=self.project.origin)
        self.gh.merges_when_armed = True
        self.gh.save()
        settings = self.project.root / ".chump" / "orchestrator.toml"
        settings.write_text(settings.read_text().replace('use = "git"', 'use = "gh"'))
        self.notes = folder / "notes"
        self.notes.mkdir()
        self.env = {
            "PATH": f"{self.gh.folder}:{os.environ['PATH']}",
            "GH_REPO": "acme/anvil",
            "GH_TOKEN": TOKEN,
            "SSH_AUTH_SOCK": "/run/an-agent",
            "PROJECT_NOTES": str(self.notes),
        }

    def run(self) -> int:
        done = self.project.program("run", "--once", **self.env)
        (self.project.folder / "run.log").write_text(done.stderr)
        return done.returncode

    def told(self) -> dict[str, dict[str, Any]]:
        return {one["gap"]: one for one in self.project.json("history")["dispatches"]}


@pytest.fixture
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    agent, *ids = request.param
    made = Site(tmp_path, agent, *ids)
    yield made
    made.project.clean()


@pytest.mark.parametrize(
    "site", [('commit(gap.lower() + ".txt", gap)', "SHIP-1", "SHIP-2")], indirect=True
)
def test_agents_without_a_token_ship_through_the_daemon(site: Site) -> None:
    assert site.run() == 0

    told = site.told().values()
    assert sorted((one["gap"], one["outcome"]) for one in told) == [
        ("SHIP-1", "shipped"),
        ("SHIP-2", "shipped"),
    ]
    assert {one["pull"] for one in told} == {1, 2}
    first, second = sorted(site.gh.known(), key=lambda one: str(one["title"]))
    assert (first["title"], second["title"]) == ("SHIP-1: SHIP-1", "SHIP-2: SHIP-2")
    assert (first["labels"], first["armed"], first["base"]) == (["agent"], "SQUASH", "main")
    assert "it works, @ everyone" in first["body"]
    assert "closes # 1" in first["body"]
    given = (site.notes / "SHIP-1.env").read_text()
    assert TOKEN not in given
    assert "GIT_CONFIG_KEY_3=credential.helper\nGIT_CONFIG_VALUE_0=false\n" in given
    assert "SSH_AUTH_SOCK" not in given
    merged = site.project.git("ls-tree", "--name-only", "main", at=site.project.origin)
    assert {"ship-1.txt", "ship-2.txt"} <= set(merged.split())
    assert site.project.left()["worktrees"] == []


LEAKING = f"""
commit("fine.txt", "fine")
if gap == "LEAK-1":
    commit("notes.txt", {token("github")!r})
    git("rm", "-q", "notes.txt")
    git("commit", "-q", "-m", "tidy up")
if gap == "LEAK-2":
    with open("left.txt", "w") as file:
        file.write("left")
"""


@pytest.mark.parametrize("site", [(LEAKING, "LEAK-1", "LEAK-2")], indirect=True)
def test_what_must_not_be_shipped_is_kept_and_told(site: Site) -> None:
    """Nothing reaches the remote, and nothing is lost."""
    assert site.run() == 1

    told = site.told()
    assert (told["LEAK-1"]["outcome"], told["LEAK-1"]["cause"]) == ("stalled", "ship-refused")
    assert told["LEAK-1"]["reason"].startswith("not pushed: GitHub token in notes.txt")
    assert (told["LEAK-2"]["outcome"], told["LEAK-2"]["cause"]) == ("stalled", "no-pr")
    assert told["LEAK-2"]["reason"] == "the agent left work uncommitted: left.txt"
    assert site.gh.known() == []
    assert site.project.git("branch", "--list", "claude/*", at=site.project.origin) == ""
    assert sorted(site.project.left()["worktrees"]) == ["leak-1", "leak-2"]
    assert "parked" in site.project.program("why", "LEAK-1").stdout
    everything = (site.project.folder / "run.log").read_text() + json.dumps(told)
    assert token("github") not in everything


def test_by_git_alone_the_push_is_the_request(tmp_path: Path) -> None:
    """Behaviour P7: whoever may merge does so, and the daemon sees it."""
    agent = 'with open("a.txt", "w") as f:\n    f.write(gap)\ngit("add", "a.txt")\n'
    agent += 'git("commit", "-q", "-m", gap)\n'
    project = Project.make(tmp_path, gaps("GIT-1"), agent, more='[ship]\nby = "daemon"\n')
    ref = "refs/heads/claude/git-1"
    try:
        project.start("--once")
        project.eventually(lambda: project.git("for-each-ref", ref, at=project.origin))
        project.git("update-ref", "refs/heads/main", ref, at=project.origin)
        project.eventually(project.outcomes)

        assert project.outcomes() == {"GIT-1": "shipped"}
    finally:
        project.clean()
