"""Worktrees that outlast their dispatch: whose they are, what changes hands, what is swept."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.dispatch import Names, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from tests.adapters.repositories import Repository, a_repository, commit, git
from tests.builders import NOW

FIRST = "infra-1-260427120000-aaaaaa"
SECOND = "infra-1-260427130000-bbbbbb"
SALVAGE = f"refs/chump/salvage/{FIRST}"


class AClock:
    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> object:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return a_repository(tmp_path)


@pytest.fixture
def clock() -> AClock:
    return AClock()


async def added(repository: Repository, clock: AClock) -> tuple[GitWorktrees, Workspace]:
    ours = GitWorktrees(
        git=Git(repository.root, dict(os.environ)),
        base_dir=repository.root / ".claude" / "worktrees",
        clock=clock,  # type: ignore[arg-type]
    )
    names = Names("claude/infra-1", "infra-1")
    return ours, await ours.add(names, await ours.refresh(), FIRST)


async def test_one_that_has_nothing_to_lose_is_kept_as_well(
    repository: Repository, clock: AClock
) -> None:
    """What its agent remembers is outside of it, and begins where it was."""
    ours, workspace = await added(repository, clock)

    removal = await ours.keep(workspace, FIRST)

    assert (removal.removed, removal.salvage_ref) == (False, "")
    assert Path(workspace.path).is_dir()
    assert await ours.holder(workspace) == FIRST
    clock.moment += timedelta(days=6)
    assert await ours.sweep_kept() == ()
    clock.moment += timedelta(days=2)
    assert await ours.sweep_kept() == (workspace.path,)
    assert list((repository.root / ".git").glob("worktrees/*")) == []
    assert "claude/" not in repository.git("branch", "--list", "--format=%(refname)")


async def test_what_is_uncommitted_in_a_kept_one_stays_and_is_in_a_snapshot_too(
    repository: Repository, clock: AClock
) -> None:
    ours, workspace = await added(repository, clock)
    (Path(workspace.path) / "new").write_text("new")
    git(Path(workspace.path), "add", "new")

    removal = await ours.keep(workspace, FIRST)

    assert removal.salvage_ref == SALVAGE
    assert repository.git("show", f"{SALVAGE}:new") == "new"
    assert git(Path(workspace.path), "status", "--porcelain") == "A  new"


async def test_it_changes_hands_in_one_step_and_nothing_in_it_is_touched(
    repository: Repository, clock: AClock
) -> None:
    ours, workspace = await added(repository, clock)
    path = Path(workspace.path)
    commit(path, "one", "1")
    (path / "new").write_text("new")
    await ours.keep(workspace, FIRST)
    before = repository.git("rev-parse", SALVAGE)
    state = git(path, "status", "--porcelain=v2", "--branch")

    assert await ours.hand_over(workspace, FIRST, SECOND)

    assert await ours.holder(workspace) == SECOND
    assert f"locked chump:{SECOND}" in repository.git("worktree", "list", "--porcelain")
    assert git(path, "status", "--porcelain=v2", "--branch") == state
    assert repository.git("rev-parse", SALVAGE) == before
    assert await ours.hand_over(workspace, FIRST, SECOND)  # said twice it is the same


async def test_the_former_holder_can_neither_remove_nor_sweep_it(
    repository: Repository, clock: AClock
) -> None:
    """The end of an earlier attempt is tidied up late, or its time is over."""
    ours, workspace = await added(repository, clock)
    await ours.keep(workspace, FIRST)
    await ours.hand_over(workspace, FIRST, SECOND)

    assert (await ours.remove(workspace, FIRST)).removed
    assert (await ours.keep(workspace, FIRST)).removed
    clock.moment += timedelta(days=30)
    assert await ours.sweep_kept() == ()

    assert Path(workspace.path).is_dir()
    assert await ours.holder(workspace) == SECOND


async def test_one_that_is_given_back_is_kept_from_then_on(
    repository: Repository, clock: AClock
) -> None:
    ours, workspace = await added(repository, clock)
    await ours.keep(workspace, FIRST)
    clock.moment += timedelta(days=6)
    await ours.hand_over(workspace, FIRST, SECOND)

    assert await ours.hand_over(workspace, SECOND, FIRST)

    clock.moment += timedelta(days=6)
    assert await ours.sweep_kept() == ()
    assert await ours.holder(workspace) == FIRST
    clock.moment += timedelta(days=2)
    assert await ours.sweep_kept() == (workspace.path,)


async def test_what_is_gone_or_another_s_does_not_change_hands(
    repository: Repository, clock: AClock
) -> None:
    ours, workspace = await added(repository, clock)

    assert not await ours.hand_over(workspace, SECOND, "third")
    assert await ours.holder(workspace) == FIRST
    repository.git("worktree", "unlock", workspace.path)
    assert await ours.holder(workspace) == ""
    assert not await ours.hand_over(workspace, FIRST, SECOND)
    repository.git("worktree", "remove", workspace.path)
    assert await ours.holder(workspace) == ""
    assert not await ours.hand_over(workspace, FIRST, SECOND)


async def test_a_link_in_its_place_is_nobody_s(repository: Repository, clock: AClock) -> None:
    ours, workspace = await added(repository, clock)
    path = Path(workspace.path)
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))

    assert await ours.holder(workspace) == ""


async def test_a_name_that_is_none_is_refused(repository: Repository, clock: AClock) -> None:
    ours, workspace = await added(repository, clock)

    with pytest.raises(Refused):
        await ours.hand_over(workspace, FIRST, "../../config")
    assert await ours.holder(workspace) == FIRST


async def test_one_that_cannot_be_locked_anew_stays_whose_it_was(
    repository: Repository, clock: AClock
) -> None:
    ours, workspace = await added(repository, clock)
    (admin,) = (repository.root / ".git" / "worktrees").iterdir()
    (admin / "locked.new").mkdir()

    with pytest.raises(Unavailable):
        await ours.hand_over(workspace, FIRST, SECOND)
    assert await ours.holder(workspace) == FIRST
