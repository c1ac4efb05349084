"""Whether a commit of a dispatch has left this machine (behaviour X2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pushes import Pushes
from chump_orchestrator.core.dispatch import Workspace
from tests.adapters.repositories import Repository, a_repository, commit, git

BRANCH = "claude/a-1"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return a_repository(tmp_path)


def a_worktree(repository: Repository, base: str = "origin/main") -> Workspace:
    path = repository.base_dir / "a-1"
    repository.git("worktree", "add", "-q", "--no-track", "-b", BRANCH, str(path), base)
    return Workspace(str(path), BRANCH, repository.head(base))


async def has_pushed(repository: Repository, workspace: Workspace, base_ref: str = "") -> bool:
    pushes = Pushes(Git(repository.root, {}), base_ref)
    return await pushes.has_pushed(workspace, "a-1-x")


async def test_a_commit_that_was_pushed_is_seen(repository: Repository) -> None:
    workspace = a_worktree(repository)
    commit(Path(workspace.path), "work")
    before = await has_pushed(repository, workspace)
    git(Path(workspace.path), "push", "-q", "origin", f"HEAD:refs/heads/{BRANCH}")

    assert not before
    assert await has_pushed(repository, workspace)


async def test_one_that_was_seen_by_whoever_looks_at_the_forge_is_one(
    repository: Repository,
) -> None:
    """Also when its branch has gone from the remote since."""
    workspace = a_worktree(repository)
    made = commit(Path(workspace.path), "work")
    repository.git("update-ref", "refs/chump/seen/a-1-x", made)

    assert await has_pushed(repository, workspace)


async def test_a_branch_without_work_of_its_own_is_none(repository: Repository) -> None:
    workspace = a_worktree(repository)
    git(Path(workspace.path), "push", "-q", "origin", f"HEAD:refs/heads/{BRANCH}")

    assert not await has_pushed(repository, workspace)


@pytest.mark.parametrize("base_ref", ["", "origin/main"])
async def test_what_came_from_the_base_branch_is_none(
    repository: Repository, base_ref: str
) -> None:
    workspace = a_worktree(repository)
    repository.push_elsewhere("main")
    repository.git("fetch", "-q", "origin")
    git(Path(workspace.path), "merge", "-q", "--ff-only", "origin/main")
    git(Path(workspace.path), "push", "-q", "origin", f"HEAD:refs/heads/{BRANCH}")

    assert not await has_pushed(repository, workspace, base_ref)


async def test_a_workspace_whose_base_is_not_known_has_none(repository: Repository) -> None:
    workspace = a_worktree(repository)
    commit(Path(workspace.path), "work")
    git(Path(workspace.path), "push", "-q", "origin", f"HEAD:refs/heads/{BRANCH}")

    assert not await has_pushed(repository, Workspace(workspace.path, BRANCH, ""))
