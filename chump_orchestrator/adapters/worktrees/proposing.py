"""Names for a new attempt that nobody has, here or on the remote (behaviour D1)."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.registrations import Registration
from chump_orchestrator.adapters.worktrees.upstream import Upstream
from chump_orchestrator.core.dispatch import Names
from chump_orchestrator.core.dispatch import names as names_of
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.gap import Gap


async def propose(
    git: Git,
    upstream: Upstream,
    entries: Sequence[Registration],
    gap: Gap,
    *,
    base_dir: Path,
    prefix: str,
    reserved: Collection[str],
) -> Names:
    """Return names that are free now; `entries` are git's list of worktrees.

    `reserved` are slugs of which only this gap's own may be used. Raises `Unavailable` where an
    entry is broken in a way that stops git.
    """
    for entry in entries:
        if entry.stops_git:
            raise Unavailable(
                f"{entry.admin} is broken ({entry.broken}), which stops git in the whole"
                " repository; see whose it is, and move it away"
            )
    listed = await git.text("for-each-ref", "--format=%(refname)", "refs/heads", "refs/remotes")
    taken = {slug for slug in reserved if slug != gap.slug}
    taken |= {entry.path.name for entry in entries if entry.path is not None}
    for branch in (*_branches(listed.split("\n")), *await upstream.heads(prefix)):
        if branch.startswith(prefix):
            # A branch `x/y` is in the way of a branch `x`, too.
            parts = branch.removeprefix(prefix).split("/")
            taken |= {prefix + "/".join(parts[:n]) for n in range(1, len(parts) + 1)}
    while True:
        proposal = names_of(gap, taken, prefix=prefix)
        if not await anyio.to_thread.run_sync(_is_in_the_way, git, base_dir, proposal):
            return proposal
        taken.add(proposal.folder)


def _is_in_the_way(git: Git, base_dir: Path, names: Names) -> bool:
    branch_lock = git.common_dir / "refs" / "heads" / f"{names.branch}.lock"
    return os.path.lexists(base_dir / names.folder) or branch_lock.exists()


def _branches(refs: Sequence[str]) -> list[str]:
    local = [ref.removeprefix("refs/heads/") for ref in refs if ref.startswith("refs/heads/")]
    remote = [ref.removeprefix("refs/remotes/") for ref in refs if ref.startswith("refs/remotes/")]
    return local + [ref.partition("/")[2] for ref in remote]
