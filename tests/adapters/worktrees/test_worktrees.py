"""Worktrees are made whole or not at all, and never removed with work in them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import rooms
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.adapters.worktrees.losses import Findings, Losses
from chump_orchestrator.core.dispatch import Names, Workspace
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.records import Removal
from tests.adapters.repositories import (
    Repository,
    a_local_repository,
    a_repository,
    commit,
    git,
)
from tests.builders import NOW, a_gap

ID = "infra-1-260427120000-aaaaaa"
FIRST = Names("claude/infra-1", "infra-1")
SECOND = Names("claude/infra-1-r2", "infra-1-r2")
SALVAGE = f"refs/chump/salvage/{ID}"


class AClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


def worktrees(root: Path, **settings: Any) -> GitWorktrees:
    clock = settings.pop("clock", None) or AClock()
    base_dir = settings.pop("base_dir", root / ".claude" / "worktrees")
    ours = Git(root, dict(os.environ))
    return GitWorktrees(git=ours, base_dir=base_dir, clock=clock, **settings)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return a_repository(tmp_path)


def nothing_is_left(repository: Repository) -> bool:
    base = repository.base_dir
    return (
        (not base.exists() or list(base.iterdir()) == [])
        and "claude/" not in repository.git("branch", "--list", "--format=%(refname)")
        and len(repository.git("worktree", "list").splitlines()) == 1
        and list((repository.root / ".git").glob("worktrees/*")) == []
    )


async def added(
    repository: Repository, names: Names = FIRST, dispatch_id: str = ID, **settings: Any
) -> tuple[GitWorktrees, Workspace]:
    ours = worktrees(repository.root, **settings)
    return ours, await ours.add(names, await ours.refresh(), dispatch_id)


# Adding


async def test_an_added_worktree_is_on_its_branch_at_the_base_and_locked(
    repository: Repository,
) -> None:
    base = repository.push_elsewhere("main")

    ours, workspace = await added(repository)

    path = repository.base_dir / "infra-1"
    assert workspace == Workspace(str(path), "claude/infra-1", base)
    assert await ours.path_of(FIRST) == str(path)
    assert git(path, "symbolic-ref", "HEAD") == "refs/heads/claude/infra-1"
    assert git(path, "rev-parse", "HEAD") == base
    assert git(path, "status", "--porcelain") == ""
    listed = repository.git("worktree", "list", "--porcelain")
    assert f"locked chump:{ID}" in listed
    assert repository.git("config", "--get-regexp", r"^branch\.claude", check=False) == ""


async def test_the_case_of_the_path_is_preserved(tmp_path: Path) -> None:
    """Behaviour D1."""
    repository = a_repository(tmp_path, name="My Répo")

    _, workspace = await added(repository)

    assert workspace.path == str(tmp_path / "My Répo" / ".claude" / "worktrees" / "infra-1")


async def test_the_base_is_looked_up_again_only_once_it_may_have_moved(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = worktrees(repository.root)
    first = await ours.refresh()
    asked: list[tuple[str, ...]] = []
    run = Git.run

    async def noting(self: Git, *args: str, **options: Any) -> Any:
        asked.append(args)
        return await run(self, *args, **options)

    monkeypatch.setattr(Git, "run", noting)
    again = await ours.refresh()
    asked_again = list(asked)
    moved = repository.push_elsewhere("main")
    repository.git("fetch", "--quiet", "origin")
    found = await ours.refresh()
    repository.git("pack-refs", "--all")
    packed = await ours.refresh()

    assert (again, asked_again) == (first, [])
    assert found == packed == moved != first


async def test_another_base_is_not_taken_for_the_last_one(repository: Repository) -> None:
    """Packed, both are told of by one file."""
    clock = AClock()
    ours = worktrees(repository.root, clock=clock)
    dev = repository.push_elsewhere("dev")
    repository.git("fetch", "--quiet", "origin")
    repository.git("pack-refs", "--all")
    main = await ours.refresh()
    again = await ours.refresh()

    repository.git("remote", "set-head", "origin", "dev")
    clock.moment += timedelta(hours=1)
    found = await ours.refresh()

    assert main == again == repository.head()
    assert found == dev != main


@pytest.mark.timeout(300)
async def test_twenty_at_once_all_succeed(repository: Repository) -> None:
    """Control: without the lock, several fail on every run."""
    ours = worktrees(repository.root)
    base = await ours.refresh()
    made: list[Workspace] = []

    async def add(number: int) -> None:
        names = await ours.propose(a_gap(f"INFRA-{number}"))
        made.append(await ours.add(names, base, f"dispatch-{number}"))

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(add, number)

    assert len({workspace.path for workspace in made}) == 20
    assert len(repository.git("worktree", "list").splitlines()) == 21


async def test_a_failing_hook_is_not_run(repository: Repository) -> None:
    for name in ("post-checkout", "reference-transaction"):
        hook = repository.root / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text("#!/bin/sh\nexit 1\n")
        hook.chmod(0o755)

    ours, workspace = await added(repository)

    assert (await ours.remove(workspace, ID)).removed


async def test_what_is_not_clean_when_new_is_rolled_back(repository: Repository) -> None:
    commit(repository.root, "crlf.txt", "a\r\n")
    commit(repository.root, ".gitattributes", "*.txt text\n")
    repository.git("push", "-q")
    ours = worktrees(repository.root)

    for _ in range(3):
        # git trusts times of files that are older than its index, so it may see them as clean.
        try:
            workspace = await ours.add(FIRST, await ours.refresh(), ID)
        except Refused as error:
            assert "was not clean when it was new" in str(error)  # noqa: PT017
            break
        assert (await ours.remove(workspace, ID)).removed

    assert nothing_is_left(repository)


async def test_a_checkout_that_fails_is_rolled_back(repository: Repository) -> None:
    commit(repository.root, ".gitattributes", "*.bin filter=broken\n")
    commit(repository.root, "a.bin")
    repository.git("push", "-q")
    repository.git("config", "filter.broken.smudge", "false")
    repository.git("config", "filter.broken.required", "true")
    ours = worktrees(repository.root)

    with pytest.raises(Refused, match="git worktree failed"):
        await ours.add(FIRST, await ours.refresh(), ID)

    assert nothing_is_left(repository)


async def test_cancelling_an_add_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    began = tmp_path / "began"
    commit(repository.root, ".gitattributes", "*.bin filter=slow\n")
    commit(repository.root, "a.bin")
    repository.git("push", "-q")
    repository.git("config", "filter.slow.smudge", f"touch {began}; sleep 60")
    ours = worktrees(repository.root)
    base = await ours.refresh()

    async with anyio.create_task_group() as group:
        group.start_soon(ours.add, FIRST, base, ID)
        with anyio.fail_after(30):
            while not began.exists():  # noqa: ASYNC110 - another process makes it
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()

    assert nothing_is_left(repository)


async def test_what_is_in_the_way_is_not_touched(repository: Repository) -> None:
    ours = worktrees(repository.root)
    base = await ours.refresh()
    repository.git("branch", "claude/infra-1")
    (repository.base_dir / "infra-1-r2").mkdir(parents=True)

    with pytest.raises(Refused, match="branch claude/infra-1 exists already"):
        await ours.add(FIRST, base, ID)
    with pytest.raises(Refused, match="exists already; move it away"):
        await ours.add(SECOND, base, ID)

    assert repository.head("claude/infra-1") == base
    assert (repository.base_dir / "infra-1-r2").is_dir()


@pytest.mark.parametrize("folder", ["..", ".git", "a/b", "-x", "", "a\n"])
async def test_a_folder_must_lie_directly_under_the_base(
    repository: Repository, folder: str
) -> None:
    ours = worktrees(repository.root)

    with pytest.raises(Refused):
        await ours.add(Names("claude/x", folder), repository.head(), ID)
    with pytest.raises(Refused):
        await ours.path_of(Names("claude/x", folder))


async def test_a_base_folder_that_became_a_link_is_refused(
    repository: Repository, tmp_path: Path
) -> None:
    ours = worktrees(repository.root)
    (tmp_path / "elsewhere").mkdir()
    repository.base_dir.parent.mkdir()
    repository.base_dir.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Refused, match="leads elsewhere"):
        await ours.add(FIRST, repository.head(), ID)

    assert list((tmp_path / "elsewhere").iterdir()) == []


# Names


def local_branch(repository: Repository) -> None:
    repository.git("branch", "claude/infra-1")


def remote_branch(repository: Repository) -> None:
    repository.push_elsewhere("claude/infra-1")


def known_remote_branch(repository: Repository) -> None:
    repository.push_elsewhere("claude/infra-1")
    repository.git("fetch", "-q")
    git(repository.origin, "update-ref", "-d", "refs/heads/claude/infra-1")


def branch_below(repository: Repository) -> None:
    repository.git("branch", "claude/infra-1/more")


def folder(repository: Repository) -> None:
    (repository.base_dir / "infra-1").mkdir(parents=True)


def dangling_link(repository: Repository) -> None:
    repository.base_dir.mkdir(parents=True)
    (repository.base_dir / "infra-1").symlink_to("nowhere")


def lost_folder(repository: Repository) -> None:
    path = repository.base_dir / "infra-1"
    repository.git("worktree", "add", "-q", "--detach", str(path))
    path.rename(repository.root.parent / "moved")


def stale_lock(repository: Repository) -> None:
    lock = repository.root / ".git" / "refs" / "heads" / "claude" / "infra-1.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()


@pytest.mark.parametrize(
    "obstacle",
    [
        local_branch,
        remote_branch,
        known_remote_branch,
        branch_below,
        folder,
        dangling_link,
        lost_folder,
        stale_lock,
    ],
)
async def test_the_next_number_is_taken_when_something_is_in_the_way(
    repository: Repository, obstacle: Callable[[Repository], None]
) -> None:
    """Behaviour D1."""
    obstacle(repository)
    ours = worktrees(repository.root)
    base = await ours.refresh()

    names = await ours.propose(a_gap("INFRA-1"))

    assert names == SECOND
    assert (await ours.add(names, base, ID)).branch == "claude/infra-1-r2"


async def test_the_smallest_free_number_is_taken(repository: Repository) -> None:
    for branch in ("claude/infra-1", "claude/infra-1-r3", "infra-1-r2", "other/infra-1-r2"):
        repository.git("branch", branch)

    assert await worktrees(repository.root).propose(a_gap("INFRA-1")) == SECOND


async def test_another_gaps_slug_is_not_taken(repository: Repository) -> None:
    reserved = {"infra-1", "infra-1-r2"}
    repository.git("branch", "claude/infra-1")
    ours = worktrees(repository.root, reserved=lambda: reserved)

    assert (await ours.propose(a_gap("INFRA-1"))).folder == "infra-1-r3"
    assert (await ours.propose(a_gap("INFRA-1-R2"))).folder == "infra-1-r2"


# The base


async def test_the_base_is_the_head_branch_of_the_remote(repository: Repository) -> None:
    repository.push_elsewhere("trunk")
    git(repository.origin, "symbolic-ref", "HEAD", "refs/heads/trunk")
    repository.git("remote", "set-head", "origin", "--delete")

    found = await worktrees(repository.root).refresh()

    assert found == repository.head("refs/remotes/origin/trunk") != repository.head()


@pytest.mark.parametrize("base_ref", ["origin/release/1", "refs/remotes/origin/release/1"])
async def test_a_remote_ref_is_fetched_alone(repository: Repository, base_ref: str) -> None:
    oid = repository.push_elsewhere("release/1")
    repository.push_elsewhere("main")
    before = repository.head("origin/main")

    assert await worktrees(repository.root, base_ref=base_ref).refresh() == oid
    assert repository.head("origin/main") == before


async def test_a_local_ref_is_not_fetched(repository: Repository) -> None:
    repository.push_elsewhere("main")
    before = repository.head("origin/main")

    assert await worktrees(repository.root, base_ref="main").refresh() == repository.head("main")
    assert repository.head("origin/main") == before


async def test_without_a_remote_the_branch_of_the_main_work_tree_serves(tmp_path: Path) -> None:
    root = a_local_repository(tmp_path)
    ours = worktrees(root)

    workspace = await ours.add(await ours.propose(a_gap()), await ours.refresh(), ID)

    assert workspace.base == git(root, "rev-parse", "main")
    assert (await ours.remove(workspace, ID)).removed


async def test_several_remotes_without_origin_ask_for_a_choice(repository: Repository) -> None:
    repository.git("remote", "rename", "origin", "one")
    repository.git("remote", "add", "two", str(repository.origin))

    with pytest.raises(ConfigError, match="base_ref: there are several remotes"):
        await worktrees(repository.root).refresh()
    assert await worktrees(repository.root, base_ref="one/main").refresh() == repository.head()


@pytest.mark.parametrize("base_ref", ["nowhere", "origin/nowhere"])
async def test_a_base_that_names_nothing_is_refused(repository: Repository, base_ref: str) -> None:
    """Control: it used to be waited for in vain."""
    with pytest.raises(Refused, match=r"nowhere.* a first commit .*, or set base_ref"):
        await worktrees(repository.root, base_ref=base_ref).refresh()


@pytest.mark.parametrize("base_ref", ["", "origin/main"])
async def test_a_remote_without_a_commit_is_refused_until_it_has_one(
    tmp_path: Path, base_ref: str
) -> None:
    origin, root = tmp_path / "origin.git", tmp_path / "repo"
    git(tmp_path, "init", "-q", "--bare", "-b", "main", str(origin))
    git(tmp_path, "clone", "-q", str(origin), str(root))
    clock = AClock()
    ours = worktrees(root, base_ref=base_ref, clock=clock)

    with pytest.raises(Refused, match="push a first commit"):
        await ours.refresh()
    base = commit(root)
    git(root, "push", "-q", "origin", "HEAD:refs/heads/main")
    clock.moment += timedelta(minutes=1)

    assert await ours.refresh() == base


async def test_a_repository_without_a_commit_is_refused_until_it_has_one(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "main", str(tmp_path))
    ours = worktrees(tmp_path)

    with pytest.raises(Refused, match="make a first commit"):
        await ours.refresh()

    base = commit(tmp_path)
    assert await ours.refresh() == base


@pytest.mark.parametrize("base_ref", ["", "origin/main"])
async def test_a_base_that_a_silent_remote_may_have_is_unavailable(
    tmp_path: Path, base_ref: str
) -> None:
    root = a_local_repository(tmp_path)
    git(root, "remote", "add", "origin", str(tmp_path / "nowhere.git"))

    with pytest.raises(Unavailable):
        await worktrees(root, base_ref=base_ref).refresh()


async def test_a_base_that_was_deleted_serves_for_an_hour(repository: Repository) -> None:
    """Behaviour D3: the last known commit does."""
    clock = AClock()
    ours = worktrees(repository.root, base_ref="origin/main", clock=clock)
    base = await ours.refresh()
    git(repository.origin, "update-ref", "-d", "refs/heads/main")

    clock.moment += timedelta(minutes=59)
    assert await ours.refresh() == base
    clock.moment += timedelta(minutes=2)
    with pytest.raises(Refused, match="origin has no branch main; push"):
        await ours.refresh()


def counted(tmp_path: Path, word: str) -> tuple[dict[str, str], Callable[[], int]]:
    """Return an environment whose git is counted, and how often `word` was its command."""
    program, calls = tmp_path / "bin" / "git", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\ncase \" $* \" in *' {word} '*) echo >>'{calls}'; sleep 0.2;; esac\n"
        f"exec '{shutil.which('git')}' \"$@\"\n"
    )
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    return env, lambda: len(calls.read_text().splitlines()) if calls.exists() else 0


async def test_those_who_refresh_at_once_share_one_fetch_and_disturb_no_add(
    repository: Repository, tmp_path: Path
) -> None:
    """Behaviour D3: single-flight."""
    env, fetches = counted(tmp_path, "fetch")
    clock = AClock()
    ours = GitWorktrees(git=Git(repository.root, env), base_dir=repository.base_dir, clock=clock)
    base = repository.head()
    told: list[str] = []

    async def refresh() -> None:
        told.append(await ours.refresh())

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(refresh)
        group.start_soon(ours.add, FIRST, base, ID)
    assert (told, fetches()) == ([base] * 5, 1)

    clock.moment += timedelta(seconds=29)
    await ours.refresh()
    assert fetches() == 1
    clock.moment += timedelta(seconds=2)
    async with anyio.create_task_group() as group:
        group.start_soon(refresh)
        group.start_soon(refresh)
    assert fetches() == 2


async def test_the_base_is_fetched_when_that_is_due(repository: Repository) -> None:
    """Behaviour D3."""
    clock = AClock()
    ours = worktrees(repository.root, clock=clock, interval=timedelta(seconds=30))
    first = await ours.refresh()
    second = repository.push_elsewhere("main", "second")
    clock.moment += timedelta(seconds=20)

    assert await ours.refresh() == first
    assert await ours.refresh(at_least=clock.moment) == second

    third = repository.push_elsewhere("main", "third")
    clock.moment += timedelta(seconds=31)
    assert await ours.refresh() == third


async def test_a_failed_fetch_is_forgiven_for_an_hour(repository: Repository) -> None:
    """Behaviour D3."""
    clock = AClock()
    ours = worktrees(repository.root, clock=clock)
    base = await ours.refresh()
    away = repository.origin.rename(repository.origin.with_name("away"))

    clock.moment += timedelta(minutes=59)
    assert await ours.refresh() == base
    # After a restart, too.
    assert await worktrees(repository.root, clock=clock).refresh() == base
    stamp = repository.root / ".git" / "chump-fetched"
    assert stamp.stat().st_mtime == NOW.timestamp()

    clock.moment += timedelta(minutes=2)
    with pytest.raises(Unavailable, match=r"origin has not been fetched for 1:01:00"):
        await ours.refresh()

    away.rename(repository.origin)
    clock.moment += timedelta(minutes=2)
    assert await ours.refresh() == base


# Removing


async def test_a_place_that_was_given_to_another_dispatch_is_left_alone(
    repository: Repository,
) -> None:
    """Control: the later dispatch used to lose worktree and branch."""
    ours, workspace = await added(repository)
    assert (await ours.remove(workspace, ID)).removed
    base = await ours.refresh()
    assert await ours.add(FIRST, base, "infra-1-another") == workspace
    untracked(Path(workspace.path))

    assert await ours.remove(workspace, ID) == Removal(removed=True)

    assert git(Path(workspace.path), "status", "--porcelain") != ""
    assert repository.head("claude/infra-1") == base
    assert repository.git("for-each-ref", "refs/chump") == ""


@pytest.mark.parametrize("has_work", [False, True])
async def test_a_place_that_is_given_to_another_dispatch_meanwhile_is_left_alone(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, has_work: bool
) -> None:
    """Control: it was looked at before, and taken away after, the other one had come."""
    ours, workspace = await added(repository)
    assert (await ours.remove(workspace, ID)).removed
    base = await ours.refresh()
    examine = Losses.examine

    async def slowly(self: Losses, *args: Any) -> Findings:
        if has_work:
            await ours.add(FIRST, base, "infra-1-another")
            untracked(Path(workspace.path))
            return await examine(self, *args)
        found = await examine(self, *args)
        await ours.add(FIRST, base, "infra-1-another")
        return found

    monkeypatch.setattr(Losses, "examine", slowly)

    assert (await ours.remove(workspace, ID)).removed

    assert git(Path(workspace.path), "rev-parse", "HEAD") == base
    assert repository.head("claude/infra-1") == base
    assert repository.git("for-each-ref", "refs/chump") == ""


async def test_git_commands_that_run_meanwhile_are_not_in_the_way_of_a_removal(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registration that is to go is first one that git overlooks.

    Control: 28 of 6,400 that went at once made a checkout elsewhere fail, of 6,200 none.
    """
    ours, workspace = await added(repository)
    _, other = await added(repository, SECOND, "infra-1-other")
    seen: list[str] = []

    def look(_seconds: float) -> None:
        git(Path(other.path), "checkout", "-q", "-b", "claude/more")
        git(Path(other.path), "worktree", "prune")
        seen.append(git(repository.root, "worktree", "list", "--porcelain"))

    monkeypatch.setattr(f"{rooms.__name__}.time.sleep", look)

    assert await ours.remove(workspace, ID) == Removal(removed=True)

    [listed] = seen
    assert "infra-1-r2" in listed
    assert workspace.branch + "\n" not in listed
    assert repository.git("branch", "--list", workspace.branch) == ""
    assert (await ours.remove(other, "infra-1-other")).removed


async def test_a_removal_that_was_cut_short_is_finished_at_the_next_start(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, workspace = await added(repository)

    def die(_seconds: float) -> None:
        raise KeyError("killed")

    monkeypatch.setattr(f"{rooms.__name__}.time.sleep", die)
    with pytest.raises(KeyError):
        await ours.remove(workspace, ID)
    monkeypatch.undo()
    repository.git("worktree", "prune")
    assert list((repository.root / ".git" / "worktrees").iterdir())

    again = worktrees(repository.root)
    assert await again.heal() == ()
    assert await again.remove(workspace, ID) == Removal(removed=True)

    assert nothing_is_left(repository)
    assert not list((repository.root / ".git" / "chump-trash").iterdir())
    assert not (repository.root / ".git" / "chump-quarantine").exists()


async def test_an_untouched_worktree_is_removed_with_all_that_belongs_to_it(
    repository: Repository,
) -> None:
    ours, workspace = await added(repository)
    repository.git("config", "branch.claude/infra-1.remote", "origin")

    assert await ours.remove(workspace, ID) == Removal(removed=True)
    assert nothing_is_left(repository)
    assert "claude/infra-1" not in (repository.root / ".git" / "config").read_text()
    assert await ours.remove(workspace, ID) == Removal(removed=True)


def work(path: Path) -> str:
    return commit(path, "work", "work\n")


def push(path: Path) -> None:
    git(path, "push", "-q", "-u", "origin", "HEAD")


def dirty(path: Path) -> None:
    (path / "README").write_text("changed\n")


def untracked(path: Path) -> None:
    (path / "new").write_text("new\n")


def staged(path: Path) -> None:
    (path / "new").write_text("new\n")
    git(path, "add", "new")


def deleted(path: Path) -> None:
    (path / "README").unlink()


def unpushed(path: Path) -> None:
    work(path)


def detached(path: Path) -> None:
    git(path, "checkout", "-q", "--detach")
    work(path)


def stashed(path: Path) -> None:
    dirty(path)
    git(path, "stash", "-q")


def stashed_detached(path: Path) -> None:
    git(path, "checkout", "-q", "--detach")
    dirty(path)
    git(path, "stash", "push", "-q", "-m", "mine")


def merging(path: Path) -> None:
    git(path, "checkout", "-q", "-b", "side", "HEAD")
    commit(path, "README", "side\n")
    git(path, "checkout", "-q", "claude/infra-1")
    commit(path, "README", "ours\n")
    push(path)
    git(path, "merge", "side", check=False)


def merging_in_vain(path: Path) -> None:
    work(path)
    push(path)
    git(path, "merge", "-s", "ours", "--no-commit", "--no-ff", "HEAD~1", check=False)
    (git_dir(path) / "MERGE_HEAD").write_text(git(path, "rev-parse", "HEAD~1") + "\n")


def rebasing(path: Path) -> None:
    work(path)
    push(path)
    git(path, "-c", "sequence.editor=sed -i s/^pick/edit/", "rebase", "-q", "-i", "HEAD~1")


def bisecting(path: Path) -> None:
    git(path, "bisect", "start")


def keep_ignored(path: Path) -> None:
    (path / ".env.local").write_text("secret\n")


def keep_ignored_below(path: Path) -> None:
    (path / "target" / "debug").mkdir(parents=True)
    git(path, "config", "--local", "x.y", "z")
    folder = path / "logs.log"
    folder.mkdir()
    (folder / ".env").write_text("secret\n")


def nested(path: Path) -> None:
    git(path, "init", "-q", "clone")
    commit(path / "clone", "inside")


def nested_empty(path: Path) -> None:
    git(path, "init", "-q", "clone")
    (path / "clone" / "inside").write_text("work\n")


def git_removed(path: Path) -> None:
    untracked(path)
    (path / ".git").unlink()


def orphaned(path: Path) -> None:
    git(path, "checkout", "-q", "--orphan", "fresh")


def git_dir(path: Path) -> Path:
    return Path(git(path, "rev-parse", "--absolute-git-dir"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (dirty, "1 uncommitted or untracked, first 'README'"),
        (untracked, "1 uncommitted or untracked, first 'new'"),
        (staged, "1 uncommitted or untracked, first 'new'"),
        (deleted, "1 uncommitted or untracked, first 'README'"),
        (unpushed, "commits of it are on no remote and not merged"),
        (detached, "commits of it are on no remote and not merged"),
        (stashed, "1 stashed in it"),
        (stashed_detached, "1 stashed in it"),
        (merging, "a merge is in progress"),
        (merging_in_vain, "a merge is in progress"),
        (rebasing, "a rebase is in progress"),
        (bisecting, "a bisection is in progress"),
        (keep_ignored, "1 ignored but to be kept, first '.env.local'"),
        (keep_ignored_below, "1 ignored but to be kept, first 'logs.log/.env'"),
        (nested, "'clone/' is a repository of its own"),
        (nested_empty, "'clone/' is a repository of its own"),
        (git_removed, "1 uncommitted or untracked, first 'new'"),
        (orphaned, "uncommitted or untracked"),
    ],
)
async def test_a_worktree_with_work_in_it_is_kept(
    repository: Repository, make: Callable[[Path], object], reason: str
) -> None:
    """No work is ever deleted; what is kept is whole in the snapshot, and stays as it was."""
    ours, workspace = await added(repository)
    path = Path(workspace.path)
    make(path)
    before = snapshot_of(path)

    removal = await ours.remove(workspace, ID)

    assert not removal.removed
    assert reason in removal.reason
    assert removal.salvage_ref == SALVAGE
    assert snapshot_of(path) == before
    assert repository.head("refs/heads/claude/infra-1")
    for file, content in before.items():
        if file.startswith("clone/"):
            continue
        assert repository.git("cat-file", "blob", f"{SALVAGE}:{file}") == content.decode().strip()
    if (path / ".git").exists() and git(path, "rev-parse", "-q", "--verify", "HEAD", check=False):
        assert (
            repository.git("merge-base", "--is-ancestor", git(path, "rev-parse", "HEAD"), SALVAGE)
            == ""
        )
    assert await ours.remove(workspace, ID) == removal


def snapshot_of(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and ".git" not in file.parts
    }


async def test_a_change_that_only_its_content_tells_is_in_the_snapshot(
    repository: Repository,
) -> None:
    """Control: with an index copied without its time, the snapshot has the old content."""
    ours, workspace = await added(repository)
    repository.git("config", "core.trustctime", "false")
    path = Path(workspace.path)
    moment = NOW.timestamp()
    os.utime(path / "README", (moment, moment))
    git(path, "update-index", "-q", "--refresh")
    (path / "README").write_text("changed\n")
    os.utime(path / "README", (moment, moment))
    os.utime(git_dir(path) / "index", (moment, moment))

    removal = await ours.remove(workspace, ID)

    assert not removal.removed
    assert repository.git("show", f"{SALVAGE}:README") == "changed"


async def test_stashes_are_in_the_snapshot(repository: Repository) -> None:
    ours, workspace = await added(repository)
    stashed(Path(workspace.path))
    stash = repository.head("refs/stash")

    await ours.remove(workspace, ID)
    repository.git("stash", "drop", "-q")

    assert repository.git("merge-base", "--is-ancestor", stash, SALVAGE) == ""


async def test_what_was_staged_and_changed_again_is_in_the_snapshot_twice(
    repository: Repository,
) -> None:
    ours, workspace = await added(repository)
    path = Path(workspace.path)
    staged(path)
    (path / "new").write_text("newer\n")

    await ours.remove(workspace, ID)

    assert repository.git("show", f"{SALVAGE}:new") == "newer"
    assert repository.git("show", f"{SALVAGE}^2:new") == "new"


async def test_unpushed_commits_alone_are_kept_by_a_ref_to_the_tip(repository: Repository) -> None:
    ours, workspace = await added(repository)
    oid = work(Path(workspace.path))

    assert not (await ours.remove(workspace, ID)).pushed
    assert repository.head(SALVAGE) == oid


@pytest.mark.parametrize("name", ["target/debug/huge.o", "a.log", "target/node_modules/x/.env"])
async def test_ignored_files_are_not_work(repository: Repository, name: str) -> None:
    ours, workspace = await added(repository)
    file = Path(workspace.path, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("made again\n")

    assert (await ours.remove(workspace, ID)).removed
    assert nothing_is_left(repository)


async def test_pushed_work_is_removed_and_said_to_be_pushed(repository: Repository) -> None:
    ours, workspace = await added(repository)
    work(Path(workspace.path))
    push(Path(workspace.path))

    assert await ours.remove(workspace, ID) == Removal(removed=True, pushed=True)
    assert nothing_is_left(repository)


async def test_more_work_after_a_push_is_kept_and_said_to_be_pushed(
    repository: Repository,
) -> None:
    ours, workspace = await added(repository)
    work(Path(workspace.path))
    push(Path(workspace.path))
    commit(Path(workspace.path), "more")

    removal = await ours.remove(workspace, ID)

    assert (removal.removed, removal.pushed) == (False, True)


async def test_merging_the_base_is_not_pushing(repository: Repository) -> None:
    ours, workspace = await added(repository)
    repository.push_elsewhere("main")
    git(Path(workspace.path), "pull", "-q", "--ff-only", "origin", "main")

    assert await ours.remove(workspace, ID) == Removal(removed=True)


async def test_work_merged_by_hand_without_a_remote_is_removed(tmp_path: Path) -> None:
    root = a_local_repository(tmp_path)
    ours = worktrees(root)
    workspace = await ours.add(FIRST, await ours.refresh(), ID)
    work(Path(workspace.path))

    assert not (await ours.remove(workspace, ID)).removed
    git(root, "merge", "-q", "--no-ff", "claude/infra-1")
    assert (await ours.remove(workspace, ID)).removed


async def test_work_that_the_forge_was_seen_to_have_is_removed(repository: Repository) -> None:
    ours, workspace = await added(repository)
    repository.git("update-ref", f"refs/chump/seen/{ID}", work(Path(workspace.path)))

    assert (await ours.remove(workspace, ID)).removed


async def test_another_dispatchs_branch_is_no_reason_to_remove(repository: Repository) -> None:
    ours, workspace = await added(repository)
    work(Path(workspace.path))
    repository.git("branch", "claude/stacked", "claude/infra-1")

    assert not (await ours.remove(workspace, ID)).removed


async def test_a_worktree_that_somebody_works_in_is_kept(repository: Repository) -> None:
    ours, workspace = await added(repository)
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
        cwd=workspace.path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        removal = await ours.remove(workspace, ID)
    finally:
        process.kill()
        process.communicate()

    assert f"({process.pid}) works in it" in removal.reason
    assert (await ours.remove(workspace, ID)).removed


async def test_a_branch_the_operator_has_checked_out_stays(repository: Repository) -> None:
    """The operator's checkout is never touched (behaviour D9)."""
    ours, workspace = await added(repository)
    repository.git("checkout", "-q", "--ignore-other-worktrees", "claude/infra-1")

    assert (await ours.remove(workspace, ID)).removed
    assert repository.git("status", "--porcelain", "--branch") == "## claude/infra-1"


async def test_a_folder_that_is_gone_takes_its_registration_along(repository: Repository) -> None:
    ours, workspace = await added(repository)
    Path(workspace.path).rename(repository.root.parent / "moved")

    assert (await ours.remove(workspace, ID)).removed
    assert nothing_is_left(repository)


async def test_a_stranger_on_an_unmounted_disk_is_not_forgotten(repository: Repository) -> None:
    """Control: `git worktree prune` forgets it."""
    disk = repository.root.parent / "disk"
    repository.git("worktree", "add", "-q", "--detach", str(disk))
    disk.rename(disk.with_name("unmounted"))
    ours, workspace = await added(repository)

    await ours.remove(workspace, ID)

    assert str(disk) in repository.git("worktree", "list")


async def test_what_lies_elsewhere_is_not_removed(repository: Repository, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    repository.base_dir.mkdir(parents=True)
    (repository.base_dir / "link").symlink_to(elsewhere)
    ours = worktrees(repository.root)

    for path in (elsewhere, repository.root, repository.base_dir / "link"):
        removal = await ours.remove(Workspace(str(path), "claude/x", repository.head()), ID)
        assert not removal.removed
        assert path.exists()


async def test_folders_that_cannot_be_written_are_deleted_too(repository: Repository) -> None:
    ours, workspace = await added(repository)
    locked = Path(workspace.path, "target", "mod", "deep")
    locked.mkdir(parents=True)
    (locked / "file").touch()
    locked.chmod(0o555)
    locked.parent.chmod(0o555)

    assert (await ours.remove(workspace, ID)).removed
    assert nothing_is_left(repository)


# What was kept


async def test_a_kept_worktree_goes_after_its_days_and_the_snapshot_stays(
    repository: Repository,
) -> None:
    clock = AClock()
    ours, workspace = await added(repository, clock=clock, keep_days=7)
    untracked(Path(workspace.path))
    await ours.remove(workspace, ID)

    clock.moment += timedelta(days=6)
    assert await ours.sweep_kept() == ()
    clock.moment += timedelta(days=2)
    assert await ours.sweep_kept() == (workspace.path,)

    assert nothing_is_left(repository)
    assert repository.git("show", f"{SALVAGE}:new") == "new"


async def test_what_was_changed_since_is_kept_anew(repository: Repository) -> None:
    clock = AClock()
    ours, workspace = await added(repository, clock=clock)
    untracked(Path(workspace.path))
    await ours.remove(workspace, ID)
    (Path(workspace.path) / "new").write_text("newer\n")

    clock.moment += timedelta(days=8)
    assert await ours.sweep_kept() == ()
    assert repository.git("show", f"{SALVAGE}:new") == "newer"
    assert repository.git("show", f"{SALVAGE}^:new") == "new"
    clock.moment += timedelta(days=8)
    assert await ours.sweep_kept() == (workspace.path,)


@pytest.mark.parametrize("make", [nested, nested_empty])
async def test_what_does_not_fit_into_a_snapshot_is_never_swept(
    repository: Repository, make: Callable[[Path], None]
) -> None:
    clock = AClock()
    ours, workspace = await added(repository, clock=clock)
    make(Path(workspace.path))
    await ours.remove(workspace, ID)

    clock.moment += timedelta(days=80)
    assert await ours.sweep_kept() == ()
    assert Path(workspace.path, "clone", "inside").exists()


async def test_without_its_snapshot_nothing_is_swept(repository: Repository) -> None:
    clock = AClock()
    ours, workspace = await added(repository, clock=clock)
    untracked(Path(workspace.path))
    await ours.remove(workspace, ID)
    repository.git("update-ref", "-d", SALVAGE)

    clock.moment += timedelta(days=8)
    assert await ours.sweep_kept() == ()


async def test_a_worktree_in_use_is_not_swept(repository: Repository) -> None:
    clock = AClock()
    ours, workspace = await added(repository, clock=clock)

    clock.moment += timedelta(days=8)
    assert await ours.sweep_kept() == ()
    assert Path(workspace.path).exists()


# Healing


@pytest.mark.parametrize("broken", ["commondir", "HEAD", "gitdir"])
async def test_a_half_made_registration_of_ours_is_put_aside(
    repository: Repository, broken: str
) -> None:
    _, workspace = await added(repository)
    admin = git_dir(Path(workspace.path))
    (admin / broken).write_text("")
    ours = worktrees(repository.root)

    told = await ours.heal()

    assert len(told) == 1
    assert str(admin) in told[0]
    assert list((repository.root / ".git" / "chump-quarantine").glob("*/infra-1"))
    assert repository.git("worktree", "list").count("\n") == 0
    assert (await ours.remove(workspace, ID)).removed
    base = await ours.refresh()
    assert await ours.propose(a_gap()) == FIRST
    assert await ours.add(FIRST, base, ID) == workspace


async def test_without_healing_an_empty_commondir_stops_everything(repository: Repository) -> None:
    """The control arm of the test above."""
    _, workspace = await added(repository)
    (git_dir(Path(workspace.path)) / "commondir").write_text("")
    ours = worktrees(repository.root)

    with pytest.raises((Refused, Unavailable)):
        await ours.add(SECOND, await ours.refresh(), ID)


async def test_a_strangers_broken_worktree_is_told_and_not_touched(repository: Repository) -> None:
    stranger = repository.root.parent / "stranger"
    repository.git("worktree", "add", "-q", "--detach", str(stranger))
    admin = git_dir(stranger)
    (admin / "HEAD").write_text("")

    told = await worktrees(repository.root).heal()

    assert len(told) == 1
    assert "not ours" in told[0]
    assert admin.is_dir()


async def test_what_git_itself_overlooks_is_not_told(repository: Repository) -> None:
    admin = repository.root / ".git" / "worktrees" / "begun"
    admin.mkdir(parents=True)
    (admin / "locked").touch()

    assert await worktrees(repository.root).heal() == ()
    assert repository.git("worktree", "list").count("\n") == 0


async def test_healing_runs_no_git_and_leaves_the_sound_alone(repository: Repository) -> None:
    _, workspace = await added(repository)
    environment = {**os.environ, "PATH": "/nowhere"}
    ours = GitWorktrees(
        git=Git(repository.root, environment), base_dir=repository.base_dir, clock=AClock()
    )

    assert await ours.heal() == ()
    assert git(Path(workspace.path), "status", "--porcelain") == ""


async def test_healing_empties_the_trash(repository: Repository) -> None:
    trash = repository.base_dir / ".trash-left"
    (trash / "infra-1").mkdir(parents=True)

    await worktrees(repository.root).heal()

    assert not trash.exists()


def ours_to_be(path: Path) -> list[str]:
    return ["--no-track", "--lock", "--reason", f"chump:{ID}", "-b", FIRST.branch, "--", str(path)]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_add_killed_at_any_moment_is_healed(repository: Repository) -> None:
    for number in range(200):
        (repository.root / f"file-{number}").write_text("text\n" * 50)
    repository.git("add", ".")
    commit(repository.root, "last")
    repository.git("push", "-q")
    base = repository.head()
    path = repository.base_dir / "infra-1"
    repository.base_dir.mkdir(parents=True)
    for turn in range(30):
        process = subprocess.Popen(
            ["git", *Git.OPTIONS, "worktree", "add", *ours_to_be(path), base],
            cwd=repository.root,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        await anyio.sleep(turn * 0.0007)
        os.killpg(process.pid, signal.SIGKILL)  # it has children, as for making the branch
        process.wait()
        ours = worktrees(repository.root)

        await ours.heal()
        removal = await ours.remove(Workspace(str(path), FIRST.branch, base), ID)
        workspace = await ours.add(await ours.propose(a_gap()), base, ID)

        assert (await ours.remove(workspace, ID)).removed
        if not removal.removed:
            # A file that git had half written looks like work.
            git(repository.root, "worktree", "remove", "-f", "-f", str(path), check=False)
            git(repository.root, "branch", "-D", FIRST.branch, check=False)
            subprocess.run(["rm", "-rf", str(path)], check=True)
            repository.git("update-ref", "-d", SALVAGE)


async def test_a_git_that_outlived_its_orchestrator_is_ended(
    repository: Repository, tmp_path: Path
) -> None:
    began = tmp_path / "began"
    commit(repository.root, ".gitattributes", "*.bin filter=slow\n")
    commit(repository.root, "a.bin")
    repository.git("config", "filter.slow.smudge", f"touch {began}; exec sleep 600")
    path = repository.base_dir / "infra-1"
    process = subprocess.Popen(
        ["git", "worktree", "add", *ours_to_be(path), "HEAD"],
        cwd=repository.root,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with anyio.fail_after(30):
        while not began.exists():  # noqa: ASYNC110 - another process makes it
            await anyio.sleep(0.01)

    await worktrees(repository.root).heal()

    assert process.wait(timeout=60) is not None
    assert not psutil.pid_exists(process.pid)


# The disk


async def test_what_is_ours_is_excluded_once_and_in_no_tracked_file(repository: Repository) -> None:
    """Behaviour D9."""
    exclude = repository.root / ".git" / "info" / "exclude"
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text("# mine\n/mine")
    ours = worktrees(repository.root)
    (repository.root / ".chump-locks").mkdir()
    (repository.root / ".chump-locks" / "x.json").touch()

    await ours.exclude()
    await ours.exclude()
    await ours.exclude(["/more/", "/mine"])

    assert exclude.read_text().splitlines() == [
        "# mine",
        "/mine",
        "/.claude/worktrees/",
        "/.chump/orchestrator/",
        "/.chump/state.db*",
        "/.chump-locks/",
        "/sessions/chump_memory.db*",
        "/.chump/secrets.env",
        "/more/",
    ]
    assert repository.git("status", "--porcelain") == ""


async def test_a_shortage_of_space_is_told(repository: Repository) -> None:
    assert await worktrees(repository.root, min_free=0).shortage() == ""
    assert await worktrees(repository.root, min_free=1).shortage() == ""
    told = await worktrees(repository.root, min_free=1 << 62).shortage()
    assert "MiB free" in told
    assert str(repository.root) in told


SHORT_OF_DESCRIPTORS = """\
import os, resource
from pathlib import Path
from chump_orchestrator.adapters.worktrees.registrations import processes_inside
from chump_orchestrator.core.errors import Unavailable
here = Path.cwd()
assert any(str(os.getpid()) in one for one in processes_inside(here)), "not seen at all"
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
try:
    print(processes_inside(here))
except Unavailable as error:
    print("told:", error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere looking takes no descriptor")
def test_who_works_in_a_worktree_is_not_guessed_for_want_of_descriptors(tmp_path: Path) -> None:
    """Promise I4: what cannot be told now is not taken for nobody."""
    looked = subprocess.run(
        [sys.executable, "-c", SHORT_OF_DESCRIPTORS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert looked.stdout.startswith(f"told: who works in {tmp_path} cannot be told now"), looked
