"""Worktrees that outlast their dispatch: kept as they are, given to another one, swept at last.

Whose a worktree is, the reason tells with which git has it locked; it changes in one step.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import registrations, rooms
from chump_orchestrator.adapters.worktrees.losses import SALVAGED, Findings, Losses
from chump_orchestrator.adapters.worktrees.registrations import REASON, Registration
from chump_orchestrator.adapters.worktrees.salvage import Salvage
from chump_orchestrator.adapters.worktrees.upstream import Upstream
from chump_orchestrator.core.dispatch import DISPATCH_ID_PATTERN, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Removal
from chump_orchestrator.telling import Logger

log = Logger()

KEPT = "chump-kept"
"""In a kept worktree's administrative folder: since when, for which dispatch, how completely."""

FOR_ITS_SESSION = "its session may be gone on with"

TakeDown = Callable[[Workspace, Registration | None, str, str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class KeptWorktrees:
    """The kept ones of one repository; `keep` is for how long, `take_down` removes one."""

    git: Git
    base_dir: Path
    losses: Losses
    upstream: Upstream
    clock: Clock
    keep: timedelta
    take_down: TakeDown

    async def leave(self, workspace: Workspace, dispatch_id: str) -> Removal:
        """Keep a worktree as it is, and what would be lost with it in a snapshot, too."""
        path = Path(workspace.path)
        entry = await self._entry(path)
        if entry is None or is_anothers(entry, dispatch_id):
            return Removal(removed=True)
        reason, ref, is_whole, is_pushed = FOR_ITS_SESSION, "", True, False
        try:
            found = await self.losses.examine(workspace, entry, await self.upstream.ref())
            is_pushed = found.pushed
            if found.reasons:
                reason = "; ".join(found.reasons)
                ref = await self.save(workspace, entry, found, dispatch_id)
                note = await anyio.to_thread.run_sync(rooms.read_note, entry.admin / KEPT)
                is_whole = note is not None and note.complete
        except Refused as error:
            # It stays until a person has looked at it.
            reason, is_whole = f"{reason}; no snapshot could be made: {error}", False
        now = self.clock.now()
        kept = rooms.Note(dispatch_id, workspace.branch, workspace.base, now, is_whole)
        await anyio.to_thread.run_sync(rooms.write_note, entry.admin / KEPT, kept)
        log.info("worktree.left", path=str(path), dispatch=dispatch_id, ref=ref)
        return Removal(removed=False, reason=reason, salvage_ref=ref, pushed=is_pushed)

    async def holder(self, workspace: Workspace) -> str:
        """Return the dispatch that a worktree is for; empty when it is gone or nobody's."""
        path = Path(workspace.path)
        if path.parent != self.base_dir or not await anyio.to_thread.run_sync(_is_folder, path):
            return ""
        entry = await self._entry(path)
        if entry is None or entry.broken:
            return ""
        reason = entry.reason or ""
        return reason.removeprefix(REASON) if reason.startswith(REASON) else ""

    async def hand_over(self, workspace: Workspace, giver: str, taker: str) -> bool:
        """Lock a worktree for `taker` that is locked for `giver`; say whether it is `taker`'s."""
        if not DISPATCH_ID_PATTERN.fullmatch(taker):
            raise Refused(f"{taker!r} is no dispatch id")
        async with self.git.lock():
            holder = await self.holder(workspace)
            if holder == taker:
                return True
            if holder != giver:
                return False
            entry = await self._entry(Path(workspace.path))
            if entry is None:
                return False
            await anyio.to_thread.run_sync(_lock_for, entry.admin, taker)
            note = await anyio.to_thread.run_sync(rooms.read_note, entry.admin / KEPT)
            if note is not None and note.dispatch == taker:
                again = replace(note, since=self.clock.now())
                await anyio.to_thread.run_sync(rooms.write_note, entry.admin / KEPT, again)
        log.info("worktree.handed_over", path=workspace.path, giver=giver, taker=taker)
        return True

    async def sweep(self) -> tuple[str, ...]:
        """Delete worktrees that were kept long enough and of which nothing would be lost.

        The snapshots stay. What has changed since is kept anew, for as long again. Returns the
        paths of those deleted.
        """
        gone = []
        for entry in await anyio.to_thread.run_sync(
            registrations.registrations, self.git.common_dir
        ):
            kept = await anyio.to_thread.run_sync(rooms.read_note, entry.admin / KEPT)
            if kept is None or entry.path is None or entry.path.parent != self.base_dir:
                continue
            if not kept.complete or self.clock.now() - kept.since < self.keep:
                continue
            if is_anothers(entry, kept.dispatch):
                continue
            before = await self.git.commit(SALVAGED + kept.dispatch)
            workspace = Workspace(str(entry.path), kept.branch, kept.base)
            try:
                found = await self.losses.examine(workspace, entry, await self.upstream.ref())
                if any("works in it" in reason for reason in found.reasons):
                    continue
                if found.reasons:
                    await self.save(workspace, entry, found, kept.dispatch)
                    if not before or await self.git.commit(SALVAGED + kept.dispatch) != before:
                        continue
            except (Refused, Unavailable) as error:
                log.warning("worktree.sweep_failed", path=workspace.path, error=str(error))
                continue
            if await self.take_down(workspace, entry, found.tip, kept.dispatch):
                ref = SALVAGED + kept.dispatch if before else ""
                log.info("worktree.swept", path=workspace.path, ref=ref)
                gone.append(workspace.path)
        return tuple(gone)

    async def save(
        self, workspace: Workspace, entry: Registration | None, found: Findings, dispatch_id: str
    ) -> str:
        """Put what was found under a salvage ref, and note that; return the ref."""
        now = self.clock.now()
        ref = SALVAGED + dispatch_id
        before = await self.git.commit(ref)
        salvage = Salvage(self.git)
        snapshot = await salvage.snapshot(workspace, entry, found, dispatch_id, now)
        if entry is not None and snapshot.oid != before:
            note = rooms.Note(dispatch_id, workspace.branch, workspace.base, now, snapshot.complete)
            await anyio.to_thread.run_sync(rooms.write_note, entry.admin / KEPT, note)
        return ref

    async def _entry(self, path: Path) -> Registration | None:
        return await anyio.to_thread.run_sync(registrations.registered, self.git.common_dir, path)


def is_anothers(entry: Registration | None, dispatch_id: str) -> bool:
    """Whether a place is locked for another dispatch than this one."""
    reason = "" if entry is None else entry.reason or ""
    return reason.startswith(REASON) and reason != REASON + dispatch_id


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _lock_for(admin: Path, dispatch_id: str) -> None:
    """Write git's own file that says why a worktree is locked. Blocks."""
    draft = admin / "locked.new"
    try:
        with draft.open("wb") as opened:
            opened.write(f"{REASON}{dispatch_id}\n".encode())
            opened.flush()
            os.fsync(opened.fileno())
        draft.replace(admin / "locked")
    except OSError as error:
        raise Unavailable(f"{admin / 'locked'} cannot be written: {error.strerror}") from error
