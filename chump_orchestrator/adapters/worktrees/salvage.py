"""Snapshots of worktrees: commits that hold everything in them that would be lost.

Files go through a private index, so that a worktree is the same afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.losses import QUIET, SALVAGED, SLOW, Findings, index
from chump_orchestrator.adapters.worktrees.registrations import Registration
from chump_orchestrator.core.dispatch import Workspace

IDENTITY = {
    "GIT_AUTHOR_NAME": "chump-orchestrator",
    "GIT_AUTHOR_EMAIL": "chump-dispatch@chump.bot",
    "GIT_COMMITTER_NAME": "chump-orchestrator",
    "GIT_COMMITTER_EMAIL": "chump-dispatch@chump.bot",
}

HEAD, STAGED, BASE, WHY = "Head", "Staged", "Base", "Why"
"""Begin lines of a snapshot's message, which tell its parents apart; see `salvaged`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The commit that holds what was kept; not `complete` when something did not fit in."""

    oid: str
    complete: bool


class Salvage:
    """Takes snapshots of the worktrees of one repository."""

    def __init__(self, git: Git) -> None:
        self._git = git

    async def snapshot(
        self,
        workspace: Workspace,
        entry: Registration | None,
        found: Findings,
        dispatch_id: str,
        moment: datetime,
    ) -> Snapshot:
        """Keep what was found under `SALVAGED` + `dispatch_id`; what is kept there already, stays.

        `entry` of `None` means that git does not know the worktree any more; `moment`, in UTC,
        becomes the snapshot's date. When there are no files to keep and one commit holds all
        others, that commit is the snapshot. Raises `Refused` or `Unavailable` when none can be
        made.
        """
        ref = SALVAGED + dispatch_id
        before = await self._git.commit(ref)
        tree, staged, whole = "", "", True
        if found.dirty or found.precious:
            tree, staged, whole = await self._trees(workspace, entry, found)
        complete = whole and not found.nested
        if before and await self._holds(before, found, tree):
            return Snapshot(before, complete)
        parents = await self._independent([*found.commits, *([before] if before else [])])
        heads = {*found.commits[:1], found.tip}
        index = ""
        if tree or len(parents) != 1 or parents[0] not in heads:
            dates = {
                name: f"@{moment.timestamp():.0f} +0000"
                for name in ("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE")
            }
            identity = {**IDENTITY, **dates}
            if staged:
                index = await self._make(staged, found.commits[:1], "Staged", identity)
                parents.append(index)
            if not tree:
                head = found.commits[0] if found.commits else ""
                tree = await self._git.tree(head) or await self._empty_tree()
            message = _message(workspace, found, dispatch_id, index)
            oid = await self._make(tree, parents, message, identity)
        else:
            oid = parents[0]
        await self._git.text("update-ref", "--", ref, oid, before or "0" * len(oid))
        return Snapshot(oid, complete)

    async def _trees(
        self, workspace: Workspace, entry: Registration | None, found: Findings
    ) -> tuple[str, str, bool]:
        path = Path(workspace.path)
        head = found.commits[0] if found.commits else workspace.base
        async with index(self._git, path, entry, head, private=True) as (env, _):
            # An index with conflicts is no tree; what is staged in it is in the files, too.
            staged = await self._git.run("write-tree", cwd=path, env=env)
            pathspecs = [".", *(f":(top,exclude,literal){place}" for place in found.nested)]
            has_all = await self._add(path, env, pathspecs, "--all")
            has_kept = True
            if found.precious:
                literal = {**env, "GIT_LITERAL_PATHSPECS": "1"}
                has_kept = await self._add(path, literal, found.precious, "--force")
            tree = await self._git.text("write-tree", cwd=path, env=env)
        staged_tree = staged.out.decode("ascii").strip() if staged.code == 0 else ""
        known = {tree, await self._git.tree(head)}
        return tree, "" if staged_tree in known else staged_tree, has_all and has_kept

    async def _add(
        self, path: Path, env: Mapping[str, str], pathspecs: Sequence[str], how: str
    ) -> bool:
        finished = await self._git.run(
            *QUIET,
            "add",
            how,
            "--ignore-errors",
            "--pathspec-from-file=-",
            "--pathspec-file-nul",
            cwd=path,
            env=env,
            feed=b"\0".join(os.fsencode(pathspec) for pathspec in pathspecs),
            timeout=SLOW,
        )
        return finished.code == 0

    async def _holds(self, commit: str, found: Findings, tree: str) -> bool:
        if tree and await self._git.tree(commit) != tree:
            return False
        return not (
            found.commits
            and await self._revisions("--max-count=1", *found.commits, "--not", commit)
        )

    async def _independent(self, commits: Sequence[str]) -> list[str]:
        if len(commits) < 2:  # noqa: PLR2004 - one depends on no other
            return list(commits)
        text = await self._git.text("merge-base", "--independent", *commits, timeout=SLOW)
        kept = set(text.split())
        return [commit for commit in commits if commit in kept]

    async def _make(
        self, tree: str, parents: Sequence[str], message: str, env: Mapping[str, str]
    ) -> str:
        options = [word for parent in dict.fromkeys(parents) for word in ("-p", parent)]
        return await self._git.text("commit-tree", *options, "-m", message, tree, env=env)

    async def _empty_tree(self) -> str:
        return await self._git.text("hash-object", "-t", "tree", "-w", "--stdin")

    async def _revisions(self, *args: str) -> list[str]:
        return (await self._git.text("rev-list", *args, timeout=SLOW)).split()


def _message(workspace: Workspace, found: Findings, dispatch_id: str, index: str) -> str:
    told = {
        HEAD: found.commits[0] if found.commits else "",
        STAGED: index,
        BASE: workspace.base,
        WHY: " ".join("; ".join(found.reasons).split()),
    }
    lines = "\n".join(f"{name}: {value}" for name, value in told.items() if value)
    return f"Salvage {workspace.branch} of {dispatch_id}\n\n{lines}"
