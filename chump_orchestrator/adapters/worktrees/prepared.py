"""Worktrees made ahead of time: a dispatch gets one by a new branch and a new name.

They lie in a folder of the orchestrator's own, detached at the base, found clean, and sealed. One
that a dispatch is done with is made again what its seal says. Nobody's work is ever in them, so
that they may be thrown away at any moment.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import handover, restoring, rooms, seals
from chump_orchestrator.adapters.worktrees.checkouts import Conversions, written_with
from chump_orchestrator.adapters.worktrees.handover import Member
from chump_orchestrator.adapters.worktrees.losses import QUIET, Losses
from chump_orchestrator.adapters.worktrees.registrations import (
    REASON,
    Registration,
    registered,
)
from chump_orchestrator.adapters.worktrees.seals import Seal
from chump_orchestrator.adapters.worktrees.traces import Cleared, Clearing
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

SPARE = 2
"""How many times as many as are wanted may be there when dispatches give theirs back: those who
come next take them, and none is made meanwhile."""

_ODD = re.compile(rb"(?:\A|\0)[^H\0]")
"""In what `ls-files -v -z` lists, a file that git does not simply look at."""

_MOVE = ("worktree", "move", "--force", "--force", "--")
"""Forced twice, which takes one along that is locked."""


class Prepared:
    """The prepared worktrees of one repository, in `folder`, made and kept by this process alone.

    Whoever calls `claim` and `take_back` holds the repository's lock; the others take it.
    `base_dir` is where dispatches have theirs; `shortage` says why there is no room for one more,
    or is empty.
    """

    def __init__(
        self,
        git: Git,
        folder: Path,
        base_dir: Path,
        losses: Losses,
        conversions: Conversions,
        shortage: Callable[[], Awaitable[str]],
    ) -> None:
        self._git = git
        self._base_dir = base_dir
        self._folder = Path(os.path.realpath(folder))
        self._seals = self._folder.with_name(f"{self._folder.name}-seals")
        self._conversions = conversions
        self._clearing = Clearing(git, losses)
        self._shortage = shortage
        self._members: list[Member] = []
        self._returned: list[Member] = []
        self._given: dict[Path, Seal] = {}
        self._turn = anyio.Lock()
        self._numbers = itertools.count(1)
        self._wanted = 0
        self._unfit_base = ""

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
        if is_given and member.seal is not None:
            self._given[member.admin] = member.seal
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
            await self._switch(member, workspace.branch)
        await anyio.to_thread.run_sync(handover.relock, member.admin, reason)
        await self._git.text(*_MOVE, str(member.path), workspace.path)

    async def prepare(self, wanted: int, base: str) -> None:
        """Have `wanted` of them ready at the commit `base`; 0 lets go of all.

        Fewer, when there is no room, or when this repository's worktrees need more than files.
        More, when dispatches have given theirs back. Raises `Unavailable` and `Refused` as git
        does. Cancelling leaves those that are whole.
        """
        self._wanted = wanted
        for admin in await anyio.to_thread.run_sync(_gone, tuple(self._given)):
            await self._unseal(admin)
        async with self._turn:
            if wanted == 0 or not base or base == self._unfit_base:
                wanted = 0
            await self._let_go(wanted)
            while True:
                await self._receive(wanted, base)
                stale = next((one for one in self._members if one.base != base), None)
                if stale is not None:
                    self._members.remove(stale)
                    await self._make_ready(stale, base)
                elif len(self._members) >= wanted or await self._is_impossible(base):
                    break
                elif not await anyio.to_thread.run_sync(self._make_folder):
                    log.info("worktrees.unprepared", base=base, why="it is on another disk")
                    self._unfit_base = base
                    break
                else:
                    await self._make_ready(await self._add(base), base, is_new=True)

    async def _is_impossible(self, base: str) -> bool:
        return base == self._unfit_base or bool(await self._shortage())

    async def empty(self) -> None:
        """Let go of all that are ready, without waiting for one that is being made."""
        gone, self._members = [*self._members, *self._returned], []
        self._returned = []
        for member in gone:
            await self._throw_away(member)

    async def clear(
        self, workspace: Workspace, entry: Registration | None, base_ref: str
    ) -> Cleared | None:
        """Prove at one look that nothing can be lost with a worktree that came from here.

        `None` when it did not, or that cannot be told so easily. Raises `Unavailable` as git does.
        """
        seal = None if entry is None else self._given.get(entry.admin)
        if entry is None or seal is None:
            return None
        return await self._clearing.clear(workspace, entry, seal, base_ref)

    async def take_back(
        self, workspace: Workspace, entry: Registration, cleared: Cleared | None
    ) -> bool:
        """Take over a dispatch's worktree, of which nothing can be lost; true when it is ours now.

        False where it is not wanted, or cannot be made like new; then it is to be deleted. Its
        branch is checked out nowhere then. The next `prepare` makes it like new.
        """
        path, place = Path(workspace.path), self._place()
        seal = self._given.pop(entry.admin, None)
        if seal is None:
            return False
        is_ours = False
        if cleared is not None and self._has_use():
            given = (path, entry.admin, place, seal.base, WAITING)
            try:
                await anyio.to_thread.run_sync(self._make_folder)
                is_ours = await anyio.to_thread.run_sync(handover.hand_back, *given)
            except (Refused, Unavailable) as error:
                log.debug("worktree.not_taken_back", path=str(path), error=str(error))
                await anyio.to_thread.run_sync(rooms.delete, (place,))
        if is_ours and cleared is not None:
            left = (seal, cleared.traces, True)
            self._returned.append(Member(place, entry.admin, seal.base, *left))
        else:
            await anyio.to_thread.run_sync(_unlink, seal.index)
        return is_ours

    async def forget(self, entry: Registration | None) -> None:
        """Keep nothing of a dispatch's worktree in which work stays; quiet for any other."""
        if entry is not None:
            await self._unseal(entry.admin)

    async def _unseal(self, admin: Path) -> None:
        seal = self._given.pop(admin, None)
        if seal is not None:
            await anyio.to_thread.run_sync(_unlink, seal.index)

    async def clean_up(self) -> None:
        """Delete what an earlier process has left; the lock is held."""
        await anyio.to_thread.run_sync(handover.clean_up, self._folder, self._git.common_dir)
        await anyio.to_thread.run_sync(rooms.delete, (self._seals,))

    def _has_use(self) -> bool:
        return len(self._members) + len(self._returned) < SPARE * self._wanted

    async def _receive(self, wanted: int, base: str) -> None:
        """Make those like new that dispatches have given back."""
        while self._returned:
            member = self._returned.pop()
            if len(self._members) >= SPARE * wanted:
                await self._throw_away(member)
            else:
                await self._make_ready(member, base)

    async def _make_ready(self, member: Member, base: str, *, is_new: bool = False) -> None:
        """Have one ready at `base`, and keep it, or throw it away."""
        is_ready = False
        try:
            why = await self._bring(member, base)
            if why and is_new:
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

    async def _bring(self, member: Member, base: str) -> str:
        """Bring one to `base`, clean and sealed; return why it is not to be used, or empty."""
        place = self._seals / f"{member.path.name}-{next(self._numbers)}"
        earlier = member.seal
        try:
            member.seal = await restoring.restore(self._git, member, base, place)
            if member.seal is None and (why := await self._look_through(member, base, place)):
                return why
        finally:
            if earlier is not None and earlier is not member.seal:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(_unlink, earlier.index)
        return await self._need(member, base)

    async def _look_through(self, member: Member, base: str, place: Path) -> str:
        """Bring one to `base`, look at every file, and seal it; return what is wrong, or empty."""
        if member.base != base:
            await self._switch(member, "--detach", base)
            member.base = base
        # Its files are let grow older than its index, so that git trusts them.
        await anyio.sleep(SETTLED_S)
        await self._git.run(*QUIET, "update-index", "-q", "--refresh", cwd=member.path)
        shown = await self._git.text(
            *(*QUIET, "status", "--porcelain=v1", "--ignored", "--untracked-files=all"),
            cwd=member.path,
            timeout=MAKING,
        )
        if shown:
            return f"it was not clean, first {shown.splitlines()[0][:200]!r}"
        listed = await self._git.run("ls-files", "-v", "-z", cwd=member.path)
        # One whose index tells git to overlook files may be used, once.
        if listed.code == 0 and not _ODD.search(listed.out):
            what = (member.path, member.admin, member.base, place)
            member.seal = await anyio.to_thread.run_sync(seals.take, *what)
        return ""

    async def _add(self, base: str) -> Member:
        place = self._place()
        entry = None
        async with self._git.lock():
            try:
                await self._git.text(
                    *(*written_with(), "worktree", "add", "--detach"),
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

    async def _switch(self, member: Member, *to: str) -> None:
        switch = (*written_with(), "switch", "--quiet", *to)
        await self._git.text(*switch, cwd=member.path, timeout=MAKING)

    async def _need(self, member: Member, base: str) -> str:
        """Return what worktrees need at `base` that is more than files, or empty."""
        if await anyio.to_thread.run_sync((member.path / ".gitmodules").exists):
            return "the repository has submodules"
        if await self._conversions.is_filtered(base):
            return "the repository has files that go through a filter"
        return ""

    async def _let_go(self, wanted: int) -> None:
        """Let go of those too many; of those that have served, fewer."""
        at_most = SPARE * wanted
        unused = sorted(self._members, key=lambda one: one.has_served)
        for place, member in enumerate(reversed(unused)):
            if place >= (at_most if member.has_served else wanted):
                self._members.remove(member)
                await self._throw_away(member)

    async def _throw_away(self, member: Member) -> None:
        trash: tuple[Path, ...] = ()
        with contextlib.suppress(Refused, Unavailable):
            async with self._git.lock():
                trash = await anyio.to_thread.run_sync(
                    rooms.throw_away, member.path, member.admin, self._git.common_dir
                )
        await anyio.to_thread.run_sync(rooms.delete, trash)
        if member.seal is not None:
            await anyio.to_thread.run_sync(_unlink, member.seal.index)

    async def _undo(self, member: Member, workspace: Workspace, ref: str) -> None:
        """Leave nothing of a claim that failed, nor of `ref` if it was made; the lock is held."""
        try:
            for place in (member.path, Path(workspace.path)):
                trash = await anyio.to_thread.run_sync(
                    rooms.throw_away, place, member.admin, self._git.common_dir
                )
                await anyio.to_thread.run_sync(rooms.delete, trash)
            if member.seal is not None:
                member.seal.index.unlink(missing_ok=True)
            if ref:
                deletion = ("update-ref", "--no-deref", "-d", "--", ref, workspace.base)
                await self._git.run(*deletion)
        except (Refused, Unavailable, OSError) as error:
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


def _gone(admins: Sequence[Path]) -> list[Path]:
    return [admin for admin in admins if not admin.exists()]


def _unlink(file: Path) -> None:
    file.unlink(missing_ok=True)
