"""Snapshots of worktrees as they are found again: listed, looked into, brought back.

Nothing that is there is ever written over, and a snapshot stays when it was restored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.losses import QUIET, SALVAGED, SLOW
from chump_orchestrator.adapters.worktrees.salvage import BASE, HEAD, IDENTITY, STAGED, WHY
from chump_orchestrator.core.dispatch import DISPATCH_ID_PATTERN
from chump_orchestrator.core.errors import Refused, Unavailable

CHECKOUT = timedelta(minutes=10)
"""For writing every file of a large repository."""

_SUBJECT = re.compile(r"Salvage (?P<branch>\S+) of (?P<dispatch>[A-Za-z0-9_-]{1,64})", re.ASCII)
_TOLD = re.compile(rf"^({HEAD}|{STAGED}|{BASE}|{WHY}): (.+)$", re.MULTILINE)
_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
_FORM = "%cn%x00%ct%x00%P%x00%B"


@dataclass(frozen=True, slots=True)
class Salvaged:
    """One snapshot.

    `oid` is its commit and `head` the one that its worktree was at: the same where there were no
    uncommitted files. `staged` is a commit of the index, or empty, and `others` are commits that
    neither is made of. `base` and `branch` are empty where they are not known, as is `reason`.
    `at` is in UTC.
    """

    dispatch: str
    oid: str
    head: str
    at: datetime
    staged: str = ""
    others: tuple[str, ...] = ()
    base: str = ""
    branch: str = ""
    reason: str = ""

    @property
    def ref(self) -> str:
        """What it is kept under."""
        return SALVAGED + self.dispatch

    @property
    def is_dirty(self) -> bool:
        """Whether it holds files that were not committed."""
        return self.oid != self.head


@dataclass(frozen=True, slots=True)
class Restored:
    """Where a snapshot was brought back to; `path` of `None` is to a branch alone.

    `more` are branches with commits of it that are not on `branch`.
    """

    branch: str
    path: Path | None
    more: tuple[str, ...] = ()


class SalvagedWork:
    """The snapshots of one repository."""

    def __init__(self, git: Git) -> None:
        self._git = git

    async def all(self) -> tuple[Salvaged, ...]:
        """Return every snapshot, the latest first."""
        listed = await self._git.text(
            "for-each-ref", "--format=%(refname) %(objectname) %(objecttype)", SALVAGED
        )
        entries = [line.split(" ") for line in listed.splitlines()]
        found = [await self._read(ref, oid) for ref, oid, kind in entries if kind == "commit"]
        return tuple(sorted(found, key=lambda one: (one.at, one.dispatch), reverse=True))

    async def of(self, dispatch_id: str) -> Salvaged:
        """Return the snapshot of one dispatch; `Refused` when there is none."""
        if DISPATCH_ID_PATTERN.fullmatch(dispatch_id):
            for one in await self.all():
                if one.dispatch == dispatch_id:
                    return one
        raise Refused(f"there is no snapshot of {dispatch_id[:80]!r}; see `salvage list`")

    async def _read(self, ref: str, oid: str) -> Salvaged:
        shown = await self._git.run("log", "-1", "--no-show-signature", f"--format={_FORM}", oid)
        name, at, parents_of, contents = shown.out.decode("utf-8", "replace").split("\0", 3)
        parents = parents_of.split()
        when = datetime.fromtimestamp(int(at or 0), UTC)
        plain = Salvaged(ref.removeprefix(SALVAGED), oid, oid, when)
        subject = _SUBJECT.match(contents)
        if name != IDENTITY["GIT_COMMITTER_NAME"] or subject is None:
            return plain
        told = {key: value.strip() for key, value in _TOLD.findall(contents)}
        head = told.get(HEAD, "")
        if not _OID.fullmatch(head) or not await self._git.commit(head):
            head = parents[0] if parents else ""
        staged = told.get(STAGED, "")
        staged = staged if staged in parents else ""
        others = tuple(one for one in parents if one not in (head, staged))
        base = told.get(BASE, "")
        return replace(
            plain,
            head=head,
            staged=staged,
            others=others,
            base=base if _OID.fullmatch(base) else "",
            branch=subject["branch"],
            reason=told.get(WHY, ""),
        )

    async def files(self, one: Salvaged, base: str) -> tuple[str, ...]:
        """Return the files in which a snapshot differs from `base`, where its work began."""
        finished = await self._git.run(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", base, one.oid, timeout=SLOW
        )
        return tuple(os.fsdecode(name) for name in finished.out.split(b"\0") if name)

    async def base_of(self, one: Salvaged, known: str = "") -> str:
        """Return the commit that the work began from, as far as that can be told, else empty."""
        for base in (one.base, known):
            if base and await self._git.commit(base):
                return base
        if not one.head:
            return ""
        found = await self._git.run("merge-base", "HEAD", one.head)
        return found.out.decode("ascii", "replace").strip() if found.code == 0 else ""

    async def commits(self, one: Salvaged, base: str) -> int:
        """Return how many commits the worktree was ahead of `base`."""
        if not one.head or not base:
            return 0
        return int(await self._git.text("rev-list", "--count", one.head, f"^{base}", timeout=SLOW))

    async def stat(self, before: str, after: str) -> str:
        """Return git's own account of the difference, for people."""
        shown = await self._git.run(
            *("diff", "--stat=100", "--no-ext-diff", "--no-textconv", before, after, "--"),
            timeout=SLOW,
        )
        return shown.out.decode("utf-8", "replace").rstrip("\n")

    async def restore(self, one: Salvaged, *, branch: str, path: Path | None) -> Restored:
        """Bring a snapshot back to a new branch and, with `path`, to a new worktree.

        In a worktree, what was not committed is so again, and what was staged is staged. On a
        branch alone it is the last commit. `Refused` when branch or path is there already, and
        nothing is left of it then.
        """
        head = one.head or one.oid
        async with self._git.lock():
            await self._refuse_taken(branch, path)
            if path is None:
                await self._make_branch(branch, one.oid)
                return Restored(branch, None)
            with anyio.CancelScope(shield=True):
                await self._fill(one, head, branch, path)
                more = [
                    await self._make_branch(f"{branch}-part{number}", oid)
                    for number, oid in enumerate(await self._beyond(one.others, head), 2)
                ]
        return Restored(branch, path, tuple(more))

    async def _refuse_taken(self, branch: str, path: Path | None) -> None:
        checked = await self._git.run("check-ref-format", "--branch", branch)
        if checked.code != 0 or branch.startswith("-"):
            raise Refused(f"{branch[:80]!r} is no name for a branch")
        if await self._git.commit(f"refs/heads/{branch}"):
            raise Refused(f"the branch {branch} is there already; name another one with --into")
        if path is not None and await anyio.to_thread.run_sync(os.path.lexists, path):
            raise Refused(f"{path} is there already; name another place with --into")

    async def _make_branch(self, branch: str, oid: str) -> str:
        await self._git.text("update-ref", "--", f"refs/heads/{branch}", oid, "0" * len(oid))
        return branch

    async def _fill(self, one: Salvaged, head: str, branch: str, path: Path) -> None:
        is_made = False
        try:
            await self._git.text(
                *(*QUIET, "worktree", "add", "--no-track", "-b", branch, "--", str(path), head),
                timeout=CHECKOUT,
            )
            is_made = True
            if one.is_dirty:
                await self._in(path, "read-tree", "--reset", "-u", one.oid)
                await self._in(path, "read-tree", one.staged or head)
                await self._in(path, "update-index", "-q", "--refresh", may_differ=True)
        except (Refused, Unavailable) as error:
            if is_made:  # it holds what the snapshot holds, and nothing else yet
                taken_back = ("worktree", "remove", "--force", "--", str(path))
                await self._git.run(*taken_back, timeout=CHECKOUT)
            await self._git.run("update-ref", "-d", "--", f"refs/heads/{branch}", head)
            raise Refused(f"{one.dispatch} could not be restored to {path}: {error}") from error

    async def _in(self, path: Path, *args: str, may_differ: bool = False) -> None:
        if may_differ:
            await self._git.run(*QUIET, *args, cwd=path, timeout=CHECKOUT)
        else:
            await self._git.text(*QUIET, *args, cwd=path, timeout=CHECKOUT)

    async def _beyond(self, others: Sequence[str], head: str) -> list[str]:
        beyond = []
        for oid in others:
            inside = await self._git.run("merge-base", "--is-ancestor", oid, head)
            if inside.code != 0:
                beyond.append(oid)
        return beyond
