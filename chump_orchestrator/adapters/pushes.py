"""Whether work has left this machine: told by what git knows here, without asking a remote."""

from __future__ import annotations

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.core.dispatch import Workspace

SEEN = "refs/chump/seen/"
"""Followed by a dispatch's id: the last commit that was seen pushed for it."""


class Pushes:
    """Sees commits of dispatches that were pushed; `base_ref` empty is the remote's HEAD."""

    def __init__(self, git: Git, base_ref: str) -> None:
        self._git = git
        self._base_ref = base_ref

    async def has_pushed(self, workspace: Workspace, dispatch_id: str) -> bool:
        """Say whether a commit that a dispatch made on top of its base is on a remote.

        A push leaves its trace in the remote's branches as this repository knows them, whoever
        made it here. `Unavailable` when git does not answer.
        """
        listed = await self._git.text(
            "for-each-ref",
            "--format=%(objectname)",
            f"refs/remotes/*/{workspace.branch}",
            f"{SEEN}{dispatch_id}",
        )
        if not workspace.base:
            return False
        # What came from the base branch is nobody's progress.
        begun = filter(None, (workspace.base, await self._git.commit(self._base_ref)))
        not_own = ("--not", *begun, "--remotes=*/HEAD")
        for oid in dict.fromkeys(listed.split()):
            if await self._git.text("rev-list", "--max-count=1", oid, *not_own):
                return True
        return False
