"""Worktrees made ahead of time: a dispatch gets one by a new branch and a new name.

They lie in a folder of the orchestrator's own, detached at the base and found clean. Nobody's work
is ever in them, so that they may be thrown away at any moment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from chump_orchestrator.adapters import handover, rooms
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.handover import Member
from chump_orchestrator.adapters.losses import QUIET
from chump_orchestrator.adapters.registrations import (
    REASON,
    Registration,
    registered,
)
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused, Unavailable

log = structlog.get_logger()

WAITING = f"{REASON}prepared"
"""The reason with which they are locked while they wait for a dispatch."""

MAKING = timedelta(minutes=10)
"""For writing every file of a large repository on a busy machine."""

SETTLED_S = 1.1
"""git reads every file that is as young as its index once more; files this old it trusts."""

UNDO_S = 60.0
"""Longest that a cancelled or failed step takes to leave nothing behind."""

_MOVE = ("worktree", "move", "--force", "--force", "--")
"""Forced twice, which takes one along that is locked."""

_FILTERED = r"(^|[[:space:]])filter="
"""In an attributes file, what sends files through a program when they are written."""


class Prepared:
    """The prepared worktrees of one repository, in `folder`, made and kept by this process alone.

    Whoever calls `claim` and `take_back` holds the repository's lock; the others take it.
    `base_dir` is where dispatches have theirs; `shortage` says why there is no room for one more,
    or is empty.
    """

    def __init__(
        self, git: Git, folder: Path, base_dir: Path, shortage: Callable[[], Awaitable[str]]
    ) -> None:
        self._git = git
        self._base_dir = base_dir
        self._folder = Path(os.path.realpath(folder))
        self._shortage = shortage
        self._members: list[Member] = []
        self._returned: list[Member] = []
        self._turn = anyio.Lock()
        self._numbers = itertools.count(1)
        self._wanted = 0
        self._unfit_base = ""
        self._plain_base = ""

    def __len__(self) -> int:
        """How many may be claimed now."""
        return len(self._members)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._folder

    async def claim(self, workspace: Workspace, dispatch_id: str) -> bool:
        """Make one of them the worktree of a dispatch; false when that is not possible.

        Then nothing of it is left. Its branch begins at the workspace's base, whatever base it was
        prepared for. Cancelling undoes what was begun.
        """
        member = next((one for one in self._members if one.base == workspace.base), None)
        if member is None and self._members:
            member = self._members[0]
        if member is None:
            return False
        self._members.remove(member)
        ref, is_made, is_given = f"refs/heads/{workspace.branch}", False, False
        try:
            await self._git.text(
                *("update-ref", "-m", f"branch: Created from {workspace.base}", "--"),
                *(ref, workspace.base, "0" * len(workspace.base)),
            )
            is_made = True
            await self._give(member, workspace, REASON + dispatch_id)
            is_given = True
        except (Refused, Unavailable) as error:
            log.warning("worktree.unclaimed", path=str(member.path), error=str(error))
        finally:
            if not is_given:
                with anyio.move_on_after(UNDO_S, shield=True):
                    await self._undo(member, workspace, ref if is_made else "")
        return is_given

    async def _give(self, member: Member, workspace: Workspace, reason: str) -> None:
        ref = f"refs/heads/{workspace.branch}"
        if member.base == workspace.base:
            given = (member, workspace.path, ref, reason)
            if await anyio.to_thread.run_sync(handover.hand_over, *given):
                return
            # Refs that are no files, or paths that are relative, are git's own business.
            await self._git.text("symbolic-ref", "HEAD", ref, cwd=member.path)
        else:
            await self._move_on(member, workspace.branch, is_branch=True)
        await anyio.to_thread.run_sync(handover.relock, member.admin, reason)
        await self._git.text(*_MOVE, str(member.path), workspace.path)

    async def prepare(self, wanted: int, base: str) -> None:
        """Have `wanted` of them ready at the commit `base`; 0 lets go of all.

        Fewer, when there is no room, or when this repository's worktrees need more than files.
        Raises `Unavailable` and `Refused` as git does. Cancelling leaves those that are whole.
        """
        self._wanted = wanted
        async with self._turn:
            if wanted == 0 or not base or base == self._unfit_base:
                wanted = 0
            await self._let_go(len(self._members) - wanted)
            while self._returned:
                member = self._returned.pop()
                if len(self._members) >= wanted:
                    await self._throw_away(member)
                else:
                    # Few of its files are young: the rest was there before its agent came.
                    await self._make_ready(member, base, self._wipe, settles=False)
            for member in [one for one in self._members if one.base != base]:
                # It may have been claimed while another one was seen to.
                if member in self._members:
                    self._members.remove(member)
                    await self._make_ready(member, base, self._move_on)
            while len(self._members) < wanted and base != self._unfit_base:
                if await self._shortage():
                    break
                if not await anyio.to_thread.run_sync(self._make_folder):
                    log.info("worktrees.unprepared", base=base, why="it is on another disk")
                    self._unfit_base = base
                    break
                await self._make_ready(await self._add(base), base, None)

    async def empty(self) -> None:
        """Let go of all that are ready, without waiting for one that is being made."""
        gone, self._members = [*self._members, *self._returned], []
        self._returned = []
        for member in gone:
            await self._throw_away(member)

    async def take_back(self, workspace: Workspace, entry: Registration) -> bool:
        """Take over a dispatch's worktree, of which nothing can be lost; true when it is ours now.

        False where it is not wanted, or is not quite like a new one: then it is as it was. Its
        branch is checked out nowhere then. The next `prepare` makes it like new.
        """
        path, place = Path(workspace.path), self._place()
        if len(self._members) + len(self._returned) >= self._wanted:
            return False
        if not await anyio.to_thread.run_sync(handover.is_ordinary, path, entry.admin):
            return False
        with anyio.CancelScope(shield=True):
            try:
                listed = await self._git.run("ls-files", "-v", "-z", cwd=path)
                files = [os.fsdecode(line) for line in listed.out.split(b"\0") if line]
                if not await anyio.to_thread.run_sync(handover.are_ordinary, path, files):
                    return False
                await anyio.to_thread.run_sync(self._make_folder)
                await self._git.text(*QUIET, "switch", "--quiet", "--detach", cwd=path)
                await self._git.text(*_MOVE, str(path), str(place))
            except (Refused, Unavailable) as error:
                log.debug("worktree.not_taken_back", path=str(path), error=str(error))
                return False
        self._returned.append(Member(place, entry.admin, ""))
        return True

    async def clean_up(self) -> None:
        """Delete what an earlier process has left; the lock is held."""
        await anyio.to_thread.run_sync(handover.clean_up, self._folder, self._git.common_dir)

    async def _make_ready(
        self,
        member: Member,
        base: str,
        step: Callable[[Member, str], Awaitable[None]] | None,
        *,
        settles: bool = True,
    ) -> None:
        """Bring one to `base`, see that it is clean, and keep it, or throw it away.

        With `settles` its files are let grow older than its index, so that git trusts them.
        """
        is_ready = False
        try:
            if step is not None:
                await step(member, base)
                member.base = base
            if settles:
                await anyio.sleep(SETTLED_S)
                await self._git.run(*QUIET, "update-index", "-q", "--refresh", cwd=member.path)
            why = await self._objection(member, base)
            if why and step is None:
                log.info("worktrees.unprepared", base=base, why=why)
                self._unfit_base = base
            is_ready = not why
            if is_ready:
                self._members.append(member)
                log.debug("worktree.prepared", path=str(member.path), base=base)
        finally:
            if not is_ready:
                with anyio.move_on_after(UNDO_S, shield=True):
                    await self._throw_away(member)

    async def _add(self, base: str) -> Member:
        place = self._place()
        entry = None
        async with self._git.lock():
            try:
                await self._git.text(
                    *(*QUIET, "-c", "checkout.workers=4", "worktree", "add", "--detach"),
                    *("--lock", "--reason", WAITING, "--", str(place), base),
                    timeout=MAKING,
                )
                entry = await anyio.to_thread.run_sync(registered, self._git.common_dir, place)
            finally:
                if entry is None:
                    with anyio.move_on_after(UNDO_S, shield=True):
                        await self._discard(place)
        if entry is None:
            raise Unavailable(f"{place} was not registered; see `git worktree list`")
        return Member(place, entry.admin, base)

    async def _move_on(self, member: Member, to: str, *, is_branch: bool = False) -> None:
        await self._git.text(
            *(*QUIET, "-c", "checkout.workers=4", "switch", "--quiet"),
            *((to,) if is_branch else ("--detach", to)),
            cwd=member.path,
            timeout=MAKING,
        )

    async def _wipe(self, member: Member, base: str) -> None:
        await self._git.text(
            *(*QUIET, "-c", "checkout.workers=4", "switch", "--quiet", "--force"),
            *("--detach", base),
            cwd=member.path,
            timeout=MAKING,
        )
        await self._git.text("clean", "--quiet", "-ffdx", cwd=member.path, timeout=MAKING)
        await anyio.to_thread.run_sync(handover.forget, member.admin)
        await anyio.to_thread.run_sync(handover.relock, member.admin, WAITING)

    async def _objection(self, member: Member, base: str) -> str:
        """Return why it is not to be used: it is not clean, or needs more than files; or empty."""
        shown = await self._git.text(
            *(*QUIET, "status", "--porcelain=v1", "--ignored", "--untracked-files=all"),
            cwd=member.path,
            timeout=MAKING,
        )
        if shown:
            return f"it was not clean, first {shown.splitlines()[0][:200]!r}"
        if await anyio.to_thread.run_sync((member.path / ".gitmodules").exists):
            return "the repository has submodules"
        if await self._is_filtered(member, base):
            return "the repository has files that go through a filter"
        return ""

    async def _is_filtered(self, member: Member, base: str) -> bool:
        """Whether files go through a program; `member` is clean, so that its index is `base`."""
        if base != self._plain_base:
            everywhere = ("--", ".gitattributes", ":(glob)**/.gitattributes")
            found = await self._git.run(
                "grep", "--cached", "--quiet", "-E", "-e", _FILTERED, *everywhere, cwd=member.path
            )
            if found.code == 0:
                return True
            self._plain_base = base
        with contextlib.suppress(OSError):
            own = (self._git.common_dir / "info" / "attributes").read_text("utf-8", "replace")
            return "filter=" in own
        return False

    async def _let_go(self, count: int) -> None:
        for _ in range(count):
            if self._members:
                await self._throw_away(self._members.pop())

    async def _throw_away(self, member: Member) -> None:
        trash: tuple[Path, ...] = ()
        with contextlib.suppress(Refused, Unavailable):
            async with self._git.lock():
                trash = await anyio.to_thread.run_sync(
                    rooms.throw_away, member.path, member.admin, self._git.common_dir
                )
        await anyio.to_thread.run_sync(rooms.delete, trash)

    async def _undo(self, member: Member, workspace: Workspace, ref: str) -> None:
        """Leave nothing of a claim that failed, nor of `ref` if it was made; the lock is held."""
        try:
            for place in (member.path, Path(workspace.path)):
                trash = await anyio.to_thread.run_sync(
                    rooms.throw_away, place, member.admin, self._git.common_dir
                )
                await anyio.to_thread.run_sync(rooms.delete, trash)
            if ref:
                await self._git.run("update-ref", "-d", "--", ref, workspace.base)
        except (Refused, Unavailable) as error:
            log.warning("worktree.undo_failed", path=workspace.path, error=str(error))

    async def _discard(self, place: Path) -> None:
        entry = await anyio.to_thread.run_sync(registered, self._git.common_dir, place)
        trash = await anyio.to_thread.run_sync(
            rooms.throw_away, place, None if entry is None else entry.admin, self._git.common_dir
        )
        await anyio.to_thread.run_sync(rooms.delete, trash)

    def _place(self) -> Path:
        return self._folder / f"ready-{os.getpid()}-{next(self._numbers)}"

    def _make_folder(self) -> bool:
        """Make the folder; false when nothing can be renamed from there to the dispatches'."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._base_dir.mkdir(parents=True, exist_ok=True)
            return self._folder.stat().st_dev == self._base_dir.stat().st_dev
        except OSError as error:
            raise Unavailable(f"{self._folder} cannot be made: {error.strerror}") from error
