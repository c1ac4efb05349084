"""Pull requests through a small `gh` on PATH that fails as the real one does (P3, P6, P7)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.adapters.pulls_graphql import Repository, repository_at, repository_named
from chump_orchestrator.core.errors import ConfigError, MissingProgram, Refused, Unavailable
from chump_orchestrator.core.outcome import Checks, PullRequest, PullState
from tests.adapters.a_repository import ARepository
from tests.adapters.on_github import BRANCH, MINUTE, World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_all_of_a_request_is_told(world: World) -> None:
    head = world.opened(412, checks="SUCCESS")

    seen = await world.look()

    assert seen == PullRequest(
        branch=BRANCH,
        state=PullState.OPEN,
        asked_at=world.repository.clock.now(),
        number=412,
        checks=Checks.PASSING,
        head=head,
        url="https://github.com/acme/anvil/pull/412",
    )


@pytest.mark.parametrize(
    ("rollup", "checks"),
    [
        (None, Checks.NONE),
        ("SUCCESS", Checks.PASSING),
        ("FAILURE", Checks.FAILING),
        ("ERROR", Checks.FAILING),
        ("PENDING", Checks.PENDING),
        ("EXPECTED", Checks.PENDING),
        ("A_STATE_OF_NEXT_YEAR", Checks.NONE),
    ],
)
async def test_the_checks_taken_together(world: World, rollup: str | None, checks: Checks) -> None:
    world.opened(checks=rollup)

    assert (await world.look()).checks is checks


async def test_checks_of_another_commit_than_the_head_tell_nothing(world: World) -> None:
    world.opened(checks="FAILURE", tip="3" * 40)

    assert (await world.look()).checks is Checks.NONE


async def test_a_branch_that_differs_by_case_alone_is_another(world: World) -> None:
    head = world.opened()
    world.request(8, head, branch=BRANCH.upper(), state="MERGED")

    assert (await world.look()).number == 7


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ("401", "Bad credentials .* run `gh auth login --hostname github.com`"),
        ("403", "see that the token may read"),
        ("429", "left alone for a while"),
        ("502", "HTTP 502; .* asked again"),
        ("errors", "Something went wrong"),
        ("refused", "error connecting to api.github.com"),
        ("rate-limited", "rate limit exceeded"),
        ("secondary", "secondary rate limit"),
        ("html", "no JSON came, but '<!DOCTYPE"),
        ("truncated", "no JSON came"),
        ("empty", "no JSON came"),
        ("{}", "the answer has no data"),
        ("null-data", "the answer has no data"),
        ("null-repository", "names no repository; see that the name is right"),
        ("number", "the answer has no data"),
        ("errors-exit-0", "Something went wrong"),
        ("missing-alias", "the answer has no b0"),
        ("other-shape", "the answer has no b0"),
    ],
)
async def test_what_is_no_answer_is_no_news(world: World, answer: str, advice: str) -> None:
    """Behaviour P3: some of these come with exit status 0 and would read as "no request"."""
    world.opened()
    world.forge.answers(answer)
    with pytest.raises(Unavailable, match=advice):
        await world.look()
    world.forge.answers("ok")
    world.repository.clock.advance(timedelta(hours=1))

    assert (await world.look()).state is PullState.OPEN


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("number", "seven"),
        ("number", True),
        ("number", -1),
        ("state", "NONE"),
        ("createdAt", "yesterday"),
        ("createdAt", "2026-04-27T12:00:00"),
        ("headRefOid", "--upload-pack=x"),
        ("isCrossRepository", None),
        ("url", 7),
    ],
)
async def test_a_request_that_is_none_is_no_news(world: World, field: str, value: object) -> None:
    world.opened()
    world.forge.requests[0][field] = value
    world.forge.save()

    with pytest.raises(Unavailable, match="could not tell of pull requests"):
        await world.look()


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://github.com/\x1b[31m", "https://a/\u202eb"]
)
async def test_a_strange_address_is_left_out(world: World, url: str) -> None:
    world.opened()
    world.forge.requests[0]["url"] = url
    world.forge.save()

    assert (await world.look()).url == ""


async def test_a_silent_server_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.pulls._wire.timeout = timedelta(seconds=0.5)
    world.forge.answers("hang")

    with pytest.raises(Unavailable, match=r"gh did not finish within 0\.5 s"):
        await world.look()


async def test_a_gh_that_is_not_installed_is_refused(repository_only: ARepository) -> None:
    env = {"PATH": "/nowhere", "GH_REPO": "acme/anvil"}
    git = Git(repository_only.root, repository_only.env)
    pulls = GhPulls(git=git, env=env, clock=repository_only.clock)

    with pytest.raises(Refused, match="gh was not found; install it"):
        await pulls.look([repository_only.watch(BRANCH)])


async def test_before_anything_is_dispatched_a_missing_gh_is_told(
    repository_only: ARepository,
) -> None:
    env = {"PATH": "/nowhere", "GH_REPO": "acme/anvil"}
    git = Git(repository_only.root, repository_only.env)
    pulls = GhPulls(git=git, env=env, clock=repository_only.clock)

    with pytest.raises(ConfigError, match="no gh on the PATH; install it") as caught:
        await pulls.check()
    assert isinstance(caught.value.__cause__, MissingProgram)


async def test_before_anything_is_dispatched_a_remote_that_is_no_github_is_told(
    tmp_path: Path,
) -> None:
    """Control: agents used to be launched first, and then left behind."""
    world = World(tmp_path, {"GH_REPO": ""})

    with pytest.raises(ConfigError, match=r"names no repository on a GitHub; set GH_REPO"):
        await world.pulls.check()
    world.repository.git("remote", "set-url", "origin", "git@github.com:acme/anvil.git")
    await world.pulls.check()

    assert world.forge.calls == []


@pytest.mark.parametrize("number", [0, -1, 2**31, 10**30])
async def test_a_number_that_no_request_has_is_no_news(world: World, number: int) -> None:
    """Control: a large one could not be written down, and ended the daemon at every start."""
    world.opened(number)

    with pytest.raises(Unavailable, match="and number"):
        await world.look()


@pytest.fixture
def repository_only(tmp_path: Path) -> ARepository:
    return ARepository(tmp_path)


async def test_a_forks_branch_of_our_name_is_not_ours(world: World) -> None:
    """Behaviour P6."""
    head = world.opened(7, state="CLOSED")
    world.request(9, head, state="MERGED", fork=True)

    seen = await world.look()

    assert (seen.number, seen.state) == (7, PullState.CLOSED)


@pytest.mark.parametrize(
    ("after", "state"),
    [(timedelta(minutes=-4), PullState.MERGED), (timedelta(minutes=-6), PullState.NONE)],
)
async def test_a_request_of_before_the_launch_is_not_ours_but_clocks_differ(
    world: World, after: timedelta, state: PullState
) -> None:
    """Behaviour P6: five minutes of slack."""
    world.opened(state="MERGED", after=after)

    assert (await world.look()).state is state


async def test_a_stranger_is_looked_at_again_before_it_is_said_to_be_none_of_ours(
    world: World,
) -> None:
    """Behaviour P6; until then the last sighting stays (P3)."""
    clock = world.repository.clock
    world.repository.worktree(BRANCH)
    before = await world.look()
    world.another(state="MERGED")
    clock.advance(MINUTE)
    doubted = await world.look()
    clock.advance(MINUTE)
    sure = await world.look()

    assert doubted == before
    assert sure == PullRequest(BRANCH, PullState.NONE, clock.now())


async def test_a_stranger_on_the_first_look_is_no_news_of_any_moment(world: World) -> None:
    world.repository.worktree(BRANCH)
    world.another(state="MERGED")

    assert await world.look() == PullRequest(BRANCH, PullState.NONE, world.repository.since)


async def test_a_head_that_cannot_be_fetched_is_no_news_and_hides_no_other(world: World) -> None:
    world.opened()
    world.request(8, "1" * 40, branch="claude/gap-2")
    watches = [world.repository.watch(branch) for branch in ("claude/gap-2", BRANCH)]

    answers = [await world.pulls.look(watches) for _ in range(3)]

    for answer in answers:
        assert answer[BRANCH].state is PullState.OPEN
        assert answer["claude/gap-2"].asked_at == world.repository.since


async def test_a_strangers_request_does_not_hide_ours(world: World) -> None:
    world.opened(7)
    world.another(number=8, state="MERGED")

    seen = await world.look()

    assert (seen.number, seen.state) == (7, PullState.OPEN)


async def test_of_ours_a_merged_one_counts_most_and_a_closed_one_least(world: World) -> None:
    head = world.opened(7, state="CLOSED")
    world.request(8, head, state="OPEN")
    world.request(9, head, state="CLOSED")
    opened = await world.look()
    world.request(7, head, state="MERGED")
    merged = await world.look()

    assert (opened.number, merged.number) == (8, 7)


async def test_a_request_that_was_closed_may_be_opened_again(world: World) -> None:
    head = world.opened(state="CLOSED")
    states = [(await world.look()).state]
    world.request(7, head, state="OPEN")
    states.append((await world.look()).state)

    assert states == [PullState.CLOSED, PullState.OPEN]


async def test_the_update_button_adds_commits_and_the_request_stays_ours(world: World) -> None:
    """Behaviour P6: a head that descends from a commit of this dispatch; fetched where unknown."""
    world.repository.pushed(BRANCH)
    world.repository.main_moves()
    elsewhere = world.repository.clone()
    world.repository.git("checkout", "-q", BRANCH, at=elsewhere)
    world.repository.git("merge", "-q", "-m", "update branch", "origin/main", at=elsewhere)
    head = world.repository.git("rev-parse", "HEAD", at=elsewhere)
    world.repository.git("push", "-q", "origin", "HEAD:refs/pull/7/head", at=elsewhere)
    world.request(7, head)
    before = world.repository.git("for-each-ref", "refs/heads", "refs/remotes")

    seen = await world.look()

    assert (seen.state, seen.head) == (PullState.OPEN, head)
    assert world.repository.git("for-each-ref", "refs/heads", "refs/remotes") == before


async def test_what_was_ours_stays_so_when_github_rebases_it(world: World) -> None:
    world.opened()
    await world.look()
    world.request(7, "2" * 40, state="MERGED")

    seen = await world.look()

    assert (seen.state, seen.head) == (PullState.MERGED, "2" * 40)


async def test_a_request_that_an_earlier_attempt_had_is_that_of_who_goes_on_with_it(
    world: World,
) -> None:
    """Behaviour P6; though GitHub has rebased it, and another daemon asks."""
    world.opened()
    await world.look()
    world.request(7, "2" * 40, state="OPEN")
    world.pulls = world.a_provider()
    watch = world.repository.watch(BRANCH, "the-one-after", accepted=7)

    seen = (await world.pulls.look([watch]))[BRANCH]

    assert (seen.state, seen.number, seen.head) == (PullState.OPEN, 7, "2" * 40)


async def test_a_reviewer_s_word_is_told_with_the_request(world: World) -> None:
    world.opened(review="CHANGES_REQUESTED")
    wanted = await world.look()
    world.request(7, wanted.head, review="APPROVED")

    approved = await world.look()

    assert (wanted.changes_requested, approved.changes_requested) == (True, False)


async def test_a_number_that_an_agent_printed_proves_nothing(world: World) -> None:
    world.repository.worktree(BRANCH)
    world.another(number=8, state="MERGED")
    watch = world.repository.watch(BRANCH, number=8)

    states = [(await world.pulls.look([watch]))[BRANCH].state for _ in range(3)]

    assert states == [PullState.NONE] * 3


async def test_more_than_fifty_branches_are_asked_about_in_turns(world: World) -> None:
    head = world.opened()
    world.request(9, head, branch="claude/gap-59")
    watches = [world.repository.watch(f"claude/gap-{n}") for n in range(60)]

    answer = await world.pulls.look(watches)

    assert len(world.forge.calls) == 2
    assert len(answer) == 60
    assert answer["claude/gap-1"].number == 7


async def test_names_travel_as_data(world: World) -> None:
    branch = 'claude/"){nodes{id}}#-$b0'
    watch = world.repository.watch(branch)

    answer = await world.pulls.look([watch])

    [call] = world.forge.calls
    assert answer[branch].state is PullState.NONE
    assert call["argv"] == [
        *("api", "graphql", "--include", "--hostname", "github.com", "--input", "-")
    ]
    assert branch not in call["body"]["query"]
    assert call["body"]["variables"] == {"owner": "acme", "name": "anvil", "b0": branch}


async def test_gh_sees_the_environment_it_was_given_and_no_secret_is_told(tmp_path: Path) -> None:
    token = "gho_thisisasecret"
    world = World(tmp_path, {"GH_TOKEN": token, "GH_FORCE_TTY": "1", "GH_DEBUG": "api"})
    await world.look()
    world.forge.answers("echo-token")
    with pytest.raises(Unavailable, match=r"token \*\*\* is no good") as told:
        await world.look()

    env = world.forge.calls[0]["env"]
    # macOS and the interpreter add variables of their own; none of ours may be among them.
    assert env["GH_TOKEN"] == token
    assert env["GH_PROMPT_DISABLED"] == "1"
    assert not {"GH_FORCE_TTY", "GH_DEBUG", "TEST_THAT_STARTED_ME"} & env.keys()
    assert token not in str(told.value)


async def test_a_rate_limit_is_left_alone_until_it_is_reset(world: World) -> None:
    clock = world.repository.clock
    reset = (clock.now() + 40 * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.forge.rate = {"cost": 1, "remaining": 3000, "resetAt": reset}
    world.opened()
    await world.look()
    world.forge.answers("rate-limited")
    for wait in (MINUTE, 35 * MINUTE, MINUTE):
        with pytest.raises(Unavailable, match="left alone"):
            await world.look()
        clock.advance(wait)
    asked = len(world.forge.calls)
    world.forge.answers("ok")
    clock.advance(5 * MINUTE)

    assert asked == 2
    assert (await world.look()).state is PullState.OPEN


@pytest.mark.parametrize("answer", ["429", "secondary"])
async def test_a_rate_limit_without_an_end_is_left_alone_for_longer_each_time(
    world: World, answer: str
) -> None:
    clock = world.repository.clock
    await world.look()
    world.forge.answers(answer)
    asked_at = []
    for minute in range(60):
        calls = len(world.forge.calls)
        with pytest.raises(Unavailable):
            await world.look()
        if len(world.forge.calls) > calls:
            asked_at.append(minute)
        clock.advance(MINUTE)

    assert asked_at == [0, 1, 3, 7, 15, 30, 45]


async def test_a_good_answer_forgets_earlier_refusals(world: World) -> None:
    clock = world.repository.clock
    for answer in ("429", "429", "ok", "429"):
        world.forge.answers(answer)
        if answer == "ok":
            await world.look()
            continue
        with pytest.raises(Unavailable, match="HTTP 429"):
            await world.look()
        clock.advance(2 * MINUTE)
    world.forge.answers("ok")

    assert (await world.look()).state is PullState.NONE


async def test_a_reserve_of_the_hours_points_is_left_to_others(world: World) -> None:
    clock = world.repository.clock
    reset = (clock.now() + 20 * MINUTE).strftime("%Y-%m-%dT%H:%M:%SZ")
    world.forge.rate = {"cost": 1, "remaining": 99, "resetAt": reset}
    world.opened()
    last = await world.look()
    with pytest.raises(Unavailable, match="99 points are left of the hour's"):
        await world.look()
    clock.advance(21 * MINUTE)

    assert last.state is PullState.OPEN
    assert (await world.look()).state is PullState.OPEN
    assert len(world.forge.calls) == 2


async def test_a_server_without_limits_says_nothing_of_them(world: World) -> None:
    world.forge.rate = None
    world.opened()

    assert (await world.look()).state is PullState.OPEN


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://github.com/acme/anvil.git", "github.com/acme/anvil"),
        ("https://github.com/acme/anvil/", "github.com/acme/anvil"),
        ("https://user:secret@GitHub.com/acme/an.vil", "github.com/acme/an.vil"),
        ("https://www.github.com/acme/anvil", "github.com/acme/anvil"),
        ("https://ghe.example.com:8443/acme/anvil.git", "ghe.example.com/acme/anvil"),
        ("git@github.com:acme/anvil.git", "github.com/acme/anvil"),
        ("ghe.example.com:acme/anvil", "ghe.example.com/acme/anvil"),
        ("ssh://git@github.com/acme/anvil.git", "github.com/acme/anvil"),
        ("ssh://git@ssh.github.com:443/acme/anvil.git", "github.com/acme/anvil"),
        ("git://github.com/acme/anvil", "github.com/acme/anvil"),
        ("git@work:acme/anvil.git", None),
        ("https://github.com/acme", None),
        ("https://github.com/acme/anvil/more", None),
        ("https://github.com/acme/..", None),
        ("https://-oProxy.com/acme/anvil", None),
        ("/srv/git/anvil.git", None),
        ("../anvil", None),
        ("file:///srv/git/anvil.git", None),
        ("", None),
    ],
)
def test_the_repository_is_told_from_the_remotes_url(url: str, found: str | None) -> None:
    repository = repository_at(url)

    assert (str(repository) if repository else None) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("acme/anvil", "github.com/acme/anvil"),
        ("ghe.example.com/acme/anvil", "ghe.example.com/acme/anvil"),
        ("https://github.com/acme/anvil", "github.com/acme/anvil"),
        ("git@github.com:acme/anvil.git", "github.com/acme/anvil"),
        ("anvil", None),
        ("a/b/c/d", None),
        ("acme/an vil", None),
    ],
)
def test_the_repository_is_told_from_gh_repo(text: str, found: str | None) -> None:
    repository = repository_named(text)

    assert (str(repository) if repository else None) == found


def test_gh_host_is_the_host_of_what_names_none() -> None:
    expected = Repository("ghe.example.com", "acme", "anvil")

    assert repository_named("acme/anvil", "ghe.example.com") == expected
    assert repository_at("git@work:acme/anvil.git", "ghe.example.com") == expected
    assert repository_at("git@github.com:acme/anvil.git", "ghe.example.com") == Repository(
        "github.com", "acme", "anvil"
    )


async def test_an_enterprise_server_is_asked_by_its_name(tmp_path: Path) -> None:
    world = World(tmp_path, {"GH_REPO": ""})
    url = "ssh://git@ghe.example.com:2222/acme/anvil.git"
    world.repository.git("remote", "set-url", "origin", url)

    await world.look()

    assert world.forge.calls[0]["argv"][3:5] == ["--hostname", "ghe.example.com"]


async def test_where_nothing_names_the_repository_the_operator_is_asked(tmp_path: Path) -> None:
    no_forge = World(tmp_path / "1", {"GH_REPO": ""})
    with pytest.raises(ConfigError, match=r"remote origin .* set GH_REPO=\[HOST/\]OWNER/NAME"):
        await no_forge.look()
    no_forge.repository.git("remote", "remove", "origin")
    with pytest.raises(ConfigError, match="remote origin"):
        await no_forge.look()
    nonsense = World(tmp_path / "2", {"GH_REPO": "non sense"})
    with pytest.raises(ConfigError, match="GH_REPO names no repository"):
        await nonsense.look()
