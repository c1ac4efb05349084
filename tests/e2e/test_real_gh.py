"""The real `gh` against a GitHub Enterprise server of the tests' own (behaviour P3, P5, P7).

What the small `gh` of other tests imitates is seen here to be so.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.core.errors import RateLimited, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from chump_orchestrator.core.pull import Checks, MergeState, Review
from tests.adapters.a_repository import ARepository
from tests.adapters.forge_graphql import a_run, a_status
from tests.e2e.github_server import HOST, TOKEN, GitHub
from tests.e2e.projects import Project, gaps

pytestmark = [
    pytest.mark.skipif(shutil.which("gh") is None, reason="gh is not installed"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed"),
    pytest.mark.skipif(sys.platform == "darwin", reason="there, gh trusts the keychain alone"),
]

BRANCH = "claude/gap-1"
REQUIRED: dict[str, Any] = {"isRequired": True}


def a_request(branch: str, head: str, created: datetime, **fields: Any) -> dict[str, Any]:
    return {
        "number": 7,
        "createdAt": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "headRefOid": head,
        "tip": head,
        "headRefName": branch,
        "isCrossRepository": False,
        "isDraft": False,
        "url": f"https://{HOST}/acme/anvil/pull/7",
        "reviewDecision": "APPROVED",
        "mergeStateStatus": "CLEAN",
        "mergeQueueEntry": None,
        "autoMergeRequest": {"enabledAt": "2026-04-27T12:00:00Z"},
        **fields,
    }


class World:
    """A repository on that server, and a provider that looks at it."""

    def __init__(self, folder: Path, github: GitHub) -> None:
        self.github = github
        self.repository = ARepository(folder / "r")
        self.pulls = GhPulls(
            git=Git(self.repository.root, self.repository.env),
            env={"PATH": self.repository.env["PATH"], **github.env},
            clock=self.repository.clock,
        )

    def opened(self, state: str = "OPEN", **fields: Any) -> str:
        if not self.github.forge["requests"]:
            self.repository.pushed(BRANCH)
        head = self.repository.tip(BRANCH)
        created = self.repository.since + timedelta(minutes=1)
        self.github.forge["requests"] = [a_request(BRANCH, head, created, state=state, **fields)]
        return head

    async def look(self) -> PullRequest:
        return (await self.pulls.look([self.repository.watch(BRANCH)]))[BRANCH]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHub]:
    github = GitHub(tmp_path_factory.mktemp("github") / "server")
    with github.serving():
        yield github


@pytest.fixture
def world(tmp_path: Path, authority: GitHub) -> World:
    authority.answer, authority.asked, authority.points = "ok", [], 0
    authority.forge |= {"requests": [], "lacking": []}
    return World(tmp_path, authority)


async def test_an_open_request_and_then_a_merged_one(world: World) -> None:
    await world.pulls.check()
    before = await world.look()
    head = world.opened(contexts=[a_run("build", **REQUIRED)])
    seen = await world.look()
    world.opened("MERGED")
    merged = await world.look()

    assert before.state is PullState.NONE
    assert seen == PullRequest(
        branch=BRANCH,
        state=PullState.OPEN,
        asked_at=world.repository.clock.now(),
        number=7,
        checks=Checks.PASSING,
        head=head,
        url=f"https://{HOST}/acme/anvil/pull/7",
        review=Review.APPROVED,
        merge_state=MergeState.CLEAN,
        is_armed=True,
    )
    assert (merged.state, merged.number) == (PullState.MERGED, 7)
    assert {one["path"] for one in world.github.asked} == {"/api/graphql"}
    assert {one["token"] for one in world.github.asked} == {f"token {TOKEN}"}
    assert world.pulls.budget.points == world.github.points == 3
    assert world.pulls.budget.left == 4900


async def test_of_failing_checks_the_required_ones_count(world: World) -> None:
    world.opened(contexts=[a_run("build", **REQUIRED), a_run("spelling", "FAILURE")])
    passing = await world.look()
    red = [a_run("build", "TIMED_OUT", **REQUIRED), a_status("ci/old", "ERROR", **REQUIRED)]
    world.opened(contexts=[*red, a_run("spelling", "FAILURE")])
    world.repository.clock.advance(timedelta(minutes=5))
    failing = await world.look()

    assert (passing.checks, passing.failing) == (Checks.PASSING, ())
    assert (failing.checks, failing.failing) == (Checks.FAILING, ("build", "ci/old"))


async def test_an_older_server_is_asked_for_what_it_has(world: World) -> None:
    world.github.forge["lacking"] = ["mergeQueueEntry", "autoMergeRequest", "isRequired"]
    world.opened(contexts=[a_run("spelling", "FAILURE")])

    with capture_logs() as logs:
        seen = await world.look()
        await world.look()

    assert (seen.state, seen.failing, seen.is_armed) == (PullState.OPEN, ("spelling",), False)
    told = [one["fields"] for one in logs if one["event"] == "pulls.field_missing"]
    assert told == [["autoMergeRequest", "mergeQueueEntry"], ["isRequired"]]
    assert len(world.github.asked) == 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("401", rf"HTTP 401.* run `gh auth login --hostname {HOST}`"),
        ("403", r"not accessible.*see that the token may read"),
        ("502", r"HTTP 502.* asked again"),
        ("html", r"no JSON came, but '<!DOCTYPE|invalid character"),
        ("empty", r"no JSON came|EOF|unexpected end"),
        ("{}", "the answer has no data"),
        ("null", "the answer has no data"),
        ("cut", r"unexpected EOF|no JSON came"),
    ],
)
async def test_what_is_no_answer_is_no_news(world: World, answer: str, said: str) -> None:
    """Behaviour P3; and then it is asked as before."""
    world.opened()
    world.github.answer = answer
    with pytest.raises(Unavailable, match=said) as told:
        await world.look()
    assert not isinstance(told.value, RateLimited)
    world.github.answer = "ok"

    assert (await world.look()).state is PullState.OPEN


@pytest.mark.parametrize(
    ("answer", "wait_s"), [("429", 77), ("secondary", 88), ("rate-limited", 1200)]
)
async def test_a_limit_is_waited_out_as_long_as_it_says(
    world: World, answer: str, wait_s: int
) -> None:
    """`gh` tells no `Retry-After` of its own accord; it is asked for the head of the answer."""
    world.opened()
    world.github.answer = answer
    with pytest.raises(RateLimited):
        await world.look()
    world.github.answer = "ok"
    world.repository.clock.advance(timedelta(seconds=wait_s - 20))
    with pytest.raises(RateLimited, match="left alone"):
        await world.look()
    world.repository.clock.advance(timedelta(seconds=21))

    assert (await world.look()).state is PullState.OPEN
    assert len(world.github.asked) == 2


async def test_a_silent_server_is_given_up(world: World) -> None:
    world.opened()
    world.pulls._wire.timeout = timedelta(seconds=1)
    world.github.answer = "silent"

    with pytest.raises(Unavailable, match="gh did not finish within 1 s"):
        await world.look()


async def test_a_server_of_an_authority_that_nobody_trusts_is_no_news_and_hears_no_token(
    world: World,
) -> None:
    world.opened()
    del world.pulls._env["SSL_CERT_FILE"]

    with pytest.raises(Unavailable, match=r"certificate|x509"):
        await world.look()
    assert world.github.asked == []


def test_the_whole_program_ships_through_it(authority: GitHub, tmp_path: Path) -> None:
    authority.answer, authority.asked = "ok", []
    authority.forge |= {"requests": [], "lacking": []}
    project = Project.make(tmp_path / "p", gaps("OURS-1"), "ship(merge=False)")
    settings = project.root / ".chump" / "orchestrator.toml"
    settings.write_text(settings.read_text().replace('use = "git"', 'use = "gh"'))
    ref = "refs/heads/claude/ours-1"
    try:
        env = {name: value for name, value in authority.env.items() if name != "HOME"}
        project.start("--once", **env)
        project.eventually(lambda: ref in project.git("ls-remote", str(project.origin)))
        head = project.git("ls-remote", str(project.origin), ref).split()[0]
        merged = a_request("claude/ours-1", head, datetime.now(UTC), state="MERGED")
        authority.forge["requests"] = [merged]
        project.eventually(project.outcomes)
    finally:
        project.clean()

    (told,) = project.json("history")["dispatches"]
    assert (told["outcome"], told["pull"]) == ("shipped", 7)
    assert {one["token"] for one in authority.asked} == {f"token {TOKEN}"}
