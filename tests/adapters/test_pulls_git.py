"""Pull requests told from commits alone (behaviour P6, P7), on real repositories."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_git import GitPulls
from chump_orchestrator.core.errors import ConfigError, Unavailable
from chump_orchestrator.core.outcome import PullRequest, PullState
from tests.adapters.a_repository import ARepository

BRANCH = "claude/gap-1"
DAY = timedelta(days=1)


@pytest.fixture
def repository(tmp_path: Path) -> ARepository:
    return ARepository(tmp_path)


def pulls_of(
    repository: ARepository, *, base_ref: str = "origin/main", program: Path | None = None
) -> GitPulls:
    env = dict(repository.env)
    if program is not None:
        env["PATH"] = f"{program.parent}:{env['PATH']}"
    return GitPulls(
        git=Git(repository.root, env),
        base_ref=base_ref,
        clock=repository.clock,
        interval=timedelta(seconds=30),
    )


async def one_look(pulls: GitPulls, repository: ARepository, branch: str = BRANCH) -> PullRequest:
    return (await pulls.look([repository.watch(branch)]))[branch]


async def state_of(repository: ARepository, branch: str = BRANCH) -> PullState:
    return (await one_look(pulls_of(repository), repository, branch)).state


def a_git(folder: Path, *, when: str, do: str) -> Path:
    """Make a `git` that does something else when the shell pattern `when` fits its arguments."""
    program = folder / "bin" / "git"
    program.parent.mkdir(exist_ok=True)
    real = shutil.which("git")
    program.write_text(
        f'#!/bin/sh\necho "$*" >>"{folder}/commands"\ncase "$*" in {when}) {do};; esac\n'
        f"exec '{real}' \"$@\"\n",
        "utf-8",
    )
    program.chmod(0o755)
    return program


MERGES: dict[str, list[tuple[str, ...]]] = {
    "fast-forward": [("merge", "-q", "--ff-only", f"origin/{BRANCH}")],
    "merge": [("merge", "-q", "--no-ff", "-m", "merged", f"origin/{BRANCH}")],
    "squash": [
        ("merge", "-q", "--squash", f"origin/{BRANCH}"),
        ("commit", "-q", "-m", "squashed"),
    ],
    "rebase": [
        ("checkout", "-q", "-B", "rebased", f"origin/{BRANCH}"),
        ("rebase", "-q", "--force-rebase", "main"),
        ("checkout", "-q", "-B", "main", "rebased"),
    ],
    "cherry-pick": [("cherry-pick", f"main..origin/{BRANCH}")],
}


@pytest.mark.parametrize("way", MERGES)
async def test_every_way_to_merge_is_seen(repository: ARepository, way: str) -> None:
    repository.pushed(BRANCH, "one", "two")
    repository.on_main(*MERGES[way])

    assert await state_of(repository) is PullState.MERGED


@pytest.mark.parametrize("way", [way for way in MERGES if way != "fast-forward"])
async def test_every_way_to_merge_is_seen_when_the_base_moves_before_and_after(
    repository: ARepository, way: str
) -> None:
    repository.pushed(BRANCH, "one", "two")
    repository.main_moves("before")
    repository.on_main(*MERGES[way])
    repository.main_moves("after")

    assert await state_of(repository) is PullState.MERGED


@pytest.mark.parametrize("way", ["squash", "rebase", "cherry-pick"])
async def test_merged_work_that_was_changed_again_is_still_merged(
    repository: ARepository, way: str
) -> None:
    repository.pushed(BRANCH, "one", "two")
    repository.on_main(*MERGES[way])
    repository.commit(repository.folder / "forge", "one", "quite another thing\n")
    repository.git("push", "-q", "origin", "main", at=repository.folder / "forge")

    assert await state_of(repository) is PullState.MERGED


@pytest.mark.parametrize("way", MERGES)
async def test_a_branch_that_was_merged_and_deleted_unseen_is_merged(
    repository: ARepository, way: str
) -> None:
    repository.pushed(BRANCH, "one", "two")
    repository.on_main(*MERGES[way])
    repository.git("push", "-q", "origin", "--delete", BRANCH, at=repository.folder / "forge")

    assert await state_of(repository) is PullState.MERGED


async def test_a_branch_at_its_base_is_none(repository: ARepository) -> None:
    repository.worktree(BRANCH)
    repository.push(BRANCH)
    repository.main_moves()

    assert await state_of(repository) is PullState.NONE


async def test_a_base_that_moves_on_without_the_branch_has_not_merged_it(
    repository: ARepository,
) -> None:
    repository.pushed(BRANCH)
    repository.main_moves()

    assert await state_of(repository) is PullState.OPEN


async def test_half_of_the_commits_are_not_the_whole(repository: ARepository) -> None:
    repository.pushed(BRANCH, "one", "two")
    repository.on_main(("cherry-pick", f"origin/{BRANCH}~1"))

    assert await state_of(repository) is PullState.OPEN


@pytest.mark.parametrize("how", ["rebase", "reset --hard", "merge --ff-only"])
async def test_a_branch_that_was_only_moved_along_the_base_branch_is_none(
    repository: ARepository, how: str
) -> None:
    """It has commits beyond its base, all of them in the base branch, and none of its own."""
    at = repository.worktree(BRANCH)
    repository.main_moves()
    repository.git("fetch", "-q", "origin")
    repository.git(*how.split(), "origin/main", at=at)
    repository.push(BRANCH)

    assert repository.tip(BRANCH) != repository.base
    assert await state_of(repository) is PullState.NONE


async def test_a_branch_rebased_onto_a_newer_base_is_open_then_merged(
    repository: ARepository,
) -> None:
    at = repository.pushed(BRANCH)
    repository.main_moves()
    repository.git("fetch", "-q", "origin")
    repository.git("rebase", "-q", "origin/main", at=at)
    repository.push(BRANCH, "--force")
    opened = await state_of(repository)
    repository.on_main(*MERGES["fast-forward"])

    assert (opened, await state_of(repository)) == (PullState.OPEN, PullState.MERGED)


async def test_a_branch_that_takes_back_what_it_did_is_open(repository: ARepository) -> None:
    """It would leave the base branch as it is, and so would nothing at all."""
    at = repository.pushed(BRANCH)
    repository.git("revert", "--no-edit", "HEAD", at=at)
    repository.push(BRANCH)
    repository.main_moves()

    assert await state_of(repository) is PullState.OPEN


async def test_an_amended_and_forced_branch_is_open(repository: ARepository) -> None:
    at = repository.pushed(BRANCH)
    pulls = pulls_of(repository)
    await one_look(pulls, repository)
    repository.git("commit", "-q", "--amend", "-m", "better", at=at)
    repository.push(BRANCH, "--force")

    seen = await one_look(pulls, repository)

    assert (seen.state, seen.head) == (PullState.OPEN, repository.tip(BRANCH))


async def test_what_was_amended_but_not_pushed_does_not_disown_the_branch(
    repository: ARepository,
) -> None:
    at = repository.pushed(BRANCH)
    pushed = repository.tip(BRANCH)
    repository.git("commit", "-q", "--amend", "-m", "better", at=at)

    seen = await one_look(pulls_of(repository), repository)

    assert (seen.state, seen.head) == (PullState.OPEN, pushed)


async def test_a_commit_pushed_from_another_local_branch_is_ours(repository: ARepository) -> None:
    at = repository.worktree(BRANCH)
    repository.git("checkout", "-q", "--detach", at=at)
    repository.commit(at, "work", "done with a detached head\n")
    repository.git("push", "-q", "origin", f"HEAD:refs/heads/{BRANCH}", at=at)

    assert await state_of(repository) is PullState.OPEN


async def test_work_that_was_not_pushed_is_none(repository: ARepository) -> None:
    at = repository.worktree(BRANCH)
    repository.commit(at, "work", "kept to itself\n")

    assert await state_of(repository) is PullState.NONE


async def test_work_pushed_straight_to_the_base_branch_is_merged(repository: ARepository) -> None:
    at = repository.worktree(BRANCH)
    repository.commit(at, "work", "in a hurry\n")
    repository.git("push", "-q", "origin", "HEAD:main", at=at)

    assert await state_of(repository) is PullState.MERGED


async def test_the_update_button_adds_a_commit_that_is_fetched_beside_everything(
    repository: ARepository,
) -> None:
    """Behaviour P6: a head that descends from our commit is ours; no ref of people's moves."""
    repository.pushed(BRANCH)
    repository.main_moves()
    elsewhere = repository.clone()
    repository.git("checkout", "-q", BRANCH, at=elsewhere)
    repository.git("merge", "-q", "-m", "update branch", "origin/main", at=elsewhere)
    repository.git("push", "-q", "origin", BRANCH, at=elsewhere)
    head = repository.git("rev-parse", "HEAD", at=elsewhere)
    before = repository.git("for-each-ref", "refs/heads", "refs/remotes", "refs/tags")

    seen = await one_look(pulls_of(repository), repository)

    assert (seen.state, seen.head) == (PullState.OPEN, head)
    assert repository.git("for-each-ref", "refs/heads", "refs/remotes", "refs/tags") == before
    assert not (repository.root / ".git" / "FETCH_HEAD").exists()


async def test_a_branch_deleted_without_a_merge_is_closed(repository: ARepository) -> None:
    repository.pushed(BRANCH)
    repository.push(BRANCH, "--delete")
    unseen = await state_of(repository)
    repository.push(BRANCH)
    pulls = pulls_of(repository)
    await one_look(pulls, repository)
    repository.push(BRANCH, "--delete")
    repository.main_moves()

    # Deleted by the one who had pushed it, nothing is left that tells of the push.
    assert unseen is PullState.NONE
    assert (await one_look(pulls, repository)).state is PullState.CLOSED
    assert await state_of(repository) is PullState.CLOSED


async def test_a_name_that_is_used_again_does_not_inherit_the_first_ones_merge(
    repository: ARepository, tmp_path: Path
) -> None:
    repository.pushed(BRANCH)
    await pulls_of(repository).look([repository.watch(BRANCH, "first")])
    repository.on_main(*MERGES["squash"])
    repository.git("worktree", "remove", str(tmp_path / "worktrees" / "claude-gap-1"))
    repository.git("branch", "-q", "-D", BRANCH)
    repository.push(BRANCH, "--delete")
    repository.worktree(BRANCH)

    answer = await pulls_of(repository).look([repository.watch(BRANCH, "second")])

    assert answer[BRANCH].state is PullState.NONE


async def test_a_clones_commits_count_only_from_the_launch_on(repository: ARepository) -> None:
    """Where nothing here tells who made a commit, its time has to."""
    elsewhere = repository.clone()
    repository.git("checkout", "-q", "-b", BRANCH, at=elsewhere)
    repository.commit(elsewhere, "old", "before\n", when=repository.since - DAY)
    repository.git("push", "-q", "origin", BRANCH, at=elsewhere)
    before = await state_of(repository)
    repository.commit(elsewhere, "new", "since\n")
    repository.git("push", "-q", "origin", BRANCH, at=elsewhere)

    assert (before, await state_of(repository)) == (PullState.NONE, PullState.OPEN)


async def test_a_base_commit_that_is_gone_hides_no_work(repository: ARepository) -> None:
    repository.pushed(BRANCH)

    answer = await pulls_of(repository).look([repository.watch(BRANCH, base="1" * 40)])

    assert answer[BRANCH].state is PullState.OPEN


async def test_a_branch_that_cannot_be_judged_is_no_news_and_hides_no_other(
    repository: ARepository, tmp_path: Path
) -> None:
    repository.pushed(BRANCH)
    repository.pushed("claude/gap-2")
    bad = repository.tip("claude/gap-2")
    program = a_git(tmp_path, when=f"*merge-base*{bad}*", do="exit 128")
    pulls = pulls_of(repository, program=program)
    watches = [repository.watch(BRANCH), repository.watch("claude/gap-2")]

    answer = await pulls.look(watches)

    assert answer[BRANCH].state is PullState.OPEN
    assert answer["claude/gap-2"] == PullRequest(
        "claude/gap-2", PullState.NONE, asked_at=repository.since
    )


async def test_the_base_branch_may_be_the_remotes_default(repository: ARepository) -> None:
    repository.pushed(BRANCH)
    repository.on_main(*MERGES["squash"])

    seen = await one_look(pulls_of(repository, base_ref=""), repository)

    assert seen.state is PullState.MERGED


async def test_branches_of_a_repository_without_a_remote_are_looked_at_where_they_are(
    repository: ARepository, tmp_path: Path
) -> None:
    repository.git("remote", "remove", "origin")
    pulls = pulls_of(repository, base_ref="main")
    at = repository.worktree(BRANCH)
    states = [(await one_look(pulls, repository)).state]
    repository.commit(at, "work", "at home\n")
    states.append((await one_look(pulls, repository)).state)
    repository.git("merge", "-q", BRANCH)
    states.append((await one_look(pulls, repository)).state)
    repository.git("worktree", "remove", str(tmp_path / "worktrees" / "claude-gap-1"))
    repository.git("branch", "-q", "-D", BRANCH)
    states.append((await one_look(pulls, repository)).state)
    by_default = await one_look(pulls_of(repository, base_ref=""), repository)

    assert states == [PullState.NONE, PullState.OPEN, PullState.MERGED, PullState.MERGED]
    assert by_default.state is PullState.MERGED


@pytest.mark.parametrize(("way", "state"), [("squash", "merged"), ("none", "open")])
async def test_an_older_git_sees_the_same(
    repository: ARepository, tmp_path: Path, way: str, state: str
) -> None:
    """git before 2.38 has no `merge-tree --write-tree`; only a merge by tree tells here."""
    at = repository.pushed(BRANCH, "one", "two")
    if way == "squash":
        repository.on_main(*MERGES["squash"])
    else:
        repository.main_moves()
    repository.commit(at, "README", "more\n", add=True)
    if way == "squash":
        repository.on_main()
        repository.commit(repository.folder / "forge", "README", "more\n", add=True)
        repository.git("push", "-q", "origin", "main", at=repository.folder / "forge")
    repository.push(BRANCH)
    program = a_git(tmp_path, when="*merge-tree*", do="exit 129")

    seen = await one_look(pulls_of(repository, program=program), repository)
    by_newer = await state_of(repository)

    assert (seen.state, by_newer) == (state, state)
    assert "merge-tree" in (tmp_path / "commands").read_text()


async def test_a_look_at_what_has_not_changed_costs_three_commands(
    repository: ARepository, tmp_path: Path
) -> None:
    repository.pushed(BRANCH)
    pulls = pulls_of(repository, program=a_git(tmp_path, when="never", do=":"))
    first = await one_look(pulls, repository)
    (tmp_path / "commands").unlink()

    second = await one_look(pulls, repository)

    commands = (tmp_path / "commands").read_text().splitlines()
    assert first == second
    assert [
        next(word for word in line.split() if word in ("for-each-ref", "ls-remote", "rev-list"))
        for line in commands
    ] == ["for-each-ref", "ls-remote", "rev-list"]


async def test_a_silent_remote_is_given_up(repository: ARepository, tmp_path: Path) -> None:
    program = a_git(tmp_path, when="*ls-remote*", do="exec sleep 600")
    pulls = pulls_of(repository, program=program)
    pulls._limit = timedelta(seconds=0.3)

    with pytest.raises(Unavailable, match=r"did not finish within 0\.3 s"):
        await one_look(pulls, repository)


@pytest.mark.parametrize("said", ["garbage", "garbage\\trefs/heads/main"])
async def test_an_answer_of_the_remote_that_is_none_is_no_news(
    repository: ARepository, tmp_path: Path, said: str
) -> None:
    program = a_git(tmp_path, when="*ls-remote*", do=f"printf '{said}\\n'; exit 0")

    with pytest.raises(Unavailable, match="named no commit"):
        await one_look(pulls_of(repository, program=program), repository)


async def test_a_base_branch_that_is_not_there_is_named(repository: ARepository) -> None:
    with pytest.raises(Unavailable, match="remote origin has no refs/heads/trunk"):
        await one_look(pulls_of(repository, base_ref="origin/trunk"), repository)
    with pytest.raises(Unavailable, match="there is no trunk in"):
        await one_look(pulls_of(repository, base_ref="trunk"), repository)
    with pytest.raises(ConfigError, match="begins with a dash"):
        await one_look(pulls_of(repository, base_ref="--upload-pack=x"), repository)


async def test_old_sightings_that_nobody_asks_about_are_let_go(repository: ARepository) -> None:
    repository.pushed(BRANCH)
    repository.pushed("claude/gap-2")
    watches = [repository.watch(BRANCH), repository.watch("claude/gap-2")]
    await pulls_of(repository).look(watches)
    repository.clock.advance(100 * DAY)

    await pulls_of(repository).look(watches[:1])

    left = repository.git("for-each-ref", "--format=%(refname)", "refs/chump/seen")
    assert left == "refs/chump/seen/claude-gap-1"


async def test_what_was_merged_and_is_settled_leaves_nothing_behind(
    repository: ARepository,
) -> None:
    """There is one for each dispatch: kept for good, they would slow git down."""
    repository.pushed(BRANCH)
    repository.pushed("claude/gap-2")
    repository.on_main(*MERGES["squash"])
    watches = [repository.watch(BRANCH), repository.watch("claude/gap-2")]
    pulls = pulls_of(repository)
    seen = ("for-each-ref", "--format=%(refname)", "refs/chump/seen")
    for _ in range(2):  # while it is asked about it stays
        assert (await pulls.look(watches))[BRANCH].state is PullState.MERGED
        assert len(repository.git(*seen).splitlines()) == 2

    await pulls.look(watches[1:])

    assert repository.git(*seen) == "refs/chump/seen/claude-gap-2"


async def test_before_anything_is_dispatched_a_base_on_no_usable_remote_is_told(
    repository: ARepository,
) -> None:
    pulls = pulls_of(repository)
    await pulls.check()
    await pulls_of(repository, base_ref="main").check()

    with pytest.raises(ConfigError, match="begins with a dash"):
        await pulls_of(repository, base_ref="-main").check()
    repository.git("config", "--unset", "remote.origin.url")
    with pytest.raises(ConfigError, match=r"remote origin has no URL; run"):
        await pulls.check()
