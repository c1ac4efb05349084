"""git worktrees, one for each dispatch: proposed, added, verified, removed or kept.

Nothing is removed before it is proved that no work is lost by it; what cannot be proved is kept,
together with a snapshot. The operator's own work tree is never touched (behaviour D1, D3, D9).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import anyio
import anyio.to_thread
import structlog

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.worktrees import checkouts, proposing, registrations, rooms
from chump_orchestrator.adapters.worktrees.checkouts import Conversions, written_with
from chump_orchestrator.adapters.worktrees.kept import KeptWorktrees, is_anothers
from chump_orchestrator.adapters.worktrees.losses import Losses
from chump_orchestrator.adapters.worktrees.packing import pack
from chump_orchestrator.adapters.worktrees.prepared import Prepared
from chump_orchestrator.adapters.worktrees.registrations import REASON, Registration
from chump_orchestrator.adapters.worktrees.traces import Cleared
from chump_orchestrator.adapters.worktrees.upstream import Upstream
from chump_orchestrator.core.dispatch import DISPATCH_ID_PATTERN, Names, Workspace
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Removal

log = structlog.get_logger()

UNDO_S = 60.0
"""Longest that a cancelled or failed step takes to leave nothing behind."""

FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
BRANCH = re.compile(r"(?![-/.])[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")
OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)


class GitWorktrees:
    """`core.ports.Worktrees` on one repository.

    `base_dir` holds the worktrees; `prefix` begins their branches; `base_ref` is where they
    begin, empty for the remote's HEAD branch; `interval` is how old a fetch may be. Kept
    worktrees live for `keep_days`; ignored files that match `keep_ignored` are work; below
    `min_free` bytes there is a shortage, 0 for never. `reserved` returns names that no attempt
    but the first of that very gap may have: the slugs of all gaps. In `prepared_dir` lie those
    that are made ahead of time, on the file system of `base_dir`; `None` is for none.
    """

    def __init__(
        self,
        *,
        git: Git,
        base_dir: Path,
        prefix: str = "claude/",
        base_ref: str = "",
        interval: timedelta = timedelta(seconds=30),
        keep_days: int = 7,
        keep_ignored: Sequence[str] = (".env*", "*.local"),
        min_free: int = 2 << 30,
        clock: Clock,
        reserved: Callable[[], Collection[str]] = tuple,
        prepared_dir: Path | None = None,
    ) -> None:
        self._git = git
        self._base_dir = Path(os.path.realpath(base_dir))
        self._prefix = prefix
        self._upstream = Upstream(git, base_ref, interval, clock)
        self._losses = Losses(git, prefix, keep_ignored)
        self._kept = KeptWorktrees(
            git,
            self._base_dir,
            self._losses,
            self._upstream,
            clock,
            timedelta(days=keep_days),
            self._take_down,
        )
        self._clock = clock
        self._min_free = min_free
        self._reserved = reserved
        self._conversions = Conversions(git)
        self._prepared = None
        if prepared_dir is not None:
            self._prepared = Prepared(
                git,
                prepared_dir,
                self._base_dir,
                self._losses,
                self._conversions,
                self._disk_shortage,
            )

    async def heal(self) -> tuple[str, ...]:
        told = []
        async with self._git.lock():
            await anyio.to_thread.run_sync(registrations.end_orphans, self._base_dir)
            if self._prepared is not None:
                await anyio.to_thread.run_sync(registrations.end_orphans, self._prepared.folder)
                await self._prepared.clean_up()
            for entry in await self._entries():
                if not entry.broken:
                    continue
                if await anyio.to_thread.run_sync((entry.admin / rooms.LEAVING).exists):
                    # Its removal was cut short; what is thrown away is deleted below.
                    await anyio.to_thread.run_sync(
                        rooms.throw_away, entry.admin / "gone", entry.admin, self._git.common_dir
                    )
                elif entry.is_ours(self._base_dir):
                    place = await anyio.to_thread.run_sync(
                        registrations.quarantine, entry, self._git.common_dir
                    )
                    told.append(f"{entry.admin} was broken ({entry.broken}); moved to {place}")
                    log.warning("worktree.quarantined", path=str(entry.admin), why=entry.broken)
                elif entry.path is not None:  # git overlooks an entry without a path
                    told.append(
                        f"{entry.admin} is broken ({entry.broken}) and not ours: git may fail"
                        " until it is moved away"
                    )
                    log.warning("worktree.broken", path=str(entry.admin), why=entry.broken)
        await anyio.to_thread.run_sync(rooms.empty_trash, self._base_dir, self._git.common_dir)
        return tuple(told)

    async def refresh(self, *, at_least: datetime | None = None) -> str:
        return await self._upstream.refresh(at_least)

    async def propose(self, gap: Gap) -> Names:
        return await proposing.propose(
            self._git,
            self._upstream,
            await self._entries(),
            gap,
            base_dir=self._base_dir,
            prefix=self._prefix,
            reserved=self._reserved(),
        )

    async def add(self, names: Names, base: str, dispatch_id: str) -> Workspace:
        path = self._place(names)
        if not DISPATCH_ID_PATTERN.fullmatch(dispatch_id):
            raise Refused(f"{dispatch_id!r} is no dispatch id")
        if not OID.fullmatch(base):
            raise Refused(f"{base!r} is no commit to begin {names.branch} from")
        workspace = Workspace(str(path), names.branch, base)
        await anyio.to_thread.run_sync(self._make_room, path)
        is_whole = False
        async with self._git.lock():
            before = await self._refuse_taken(path)
            if self._prepared is not None and await self._prepared.claim(workspace, dispatch_id):
                log.info("worktree.claimed", path=str(path), branch=names.branch, base=base)
                return workspace
            if await self._git.commit(f"refs/heads/{names.branch}"):
                raise Refused(f"the branch {names.branch} exists already; rename it")
            try:
                reads = await self._make(workspace, REASON + dispatch_id)
                is_whole = True
            finally:
                if not is_whole:
                    await self._undo(workspace, contextlib.nullcontext(), before)
        is_whole = False
        try:
            entry = await self._entry(path)
            await checkouts.verify(self._git, workspace, entry, reads=reads)
            is_whole = True
        finally:
            if not is_whole:
                await self._undo(workspace, self._git.lock(), before)
        log.info("worktree.added", path=str(path), branch=names.branch, base=base)
        return workspace

    async def path_of(self, names: Names) -> str:
        return str(self._place(names))

    async def remove(self, workspace: Workspace, dispatch_id: str) -> Removal:
        path = Path(workspace.path)
        if path.parent != self._base_dir or await anyio.to_thread.run_sync(path.is_symlink):
            return Removal(removed=False, reason=f"{path} does not lie in {self._base_dir}")
        entry = await self._entry(path)
        if is_anothers(entry, dispatch_id):
            log.debug("worktree.reassigned", path=str(path), dispatch=dispatch_id)
            return Removal(removed=True)
        base_ref = await self._upstream.ref()
        if self._prepared is not None:
            cleared = await self._prepared.clear(workspace, entry, base_ref)
            if cleared is not None:
                if await self._take_down(workspace, entry, cleared.tip, dispatch_id, cleared):
                    log.info("worktree.removed", path=str(path), branch=workspace.branch)
                return Removal(removed=True, pushed=cleared.pushed)
        try:
            found = await self._losses.examine(workspace, entry, base_ref)
        except Refused as error:
            reason = f"it cannot be examined: {error}"
            log.warning("worktree.kept", path=str(path), why=reason, ref="")
            return Removal(removed=False, reason=reason)
        if not found.reasons:
            if await self._take_down(workspace, entry, found.tip, dispatch_id):
                log.info("worktree.removed", path=str(path), branch=workspace.branch)
            return Removal(removed=True, pushed=found.pushed)
        if is_anothers(await self._entry(path), dispatch_id):
            log.debug("worktree.reassigned", path=str(path), dispatch=dispatch_id)
            return Removal(removed=True, pushed=found.pushed)
        reason = "; ".join(found.reasons)
        if self._prepared is not None:
            await self._prepared.forget(entry)
        try:
            ref = await self._kept.save(workspace, entry, found, dispatch_id)
        except Refused as error:
            reason, ref = f"{reason}; no snapshot could be made: {error}", ""
        log.warning("worktree.kept", path=str(path), why=reason, ref=ref)
        return Removal(removed=False, reason=reason, salvage_ref=ref, pushed=found.pushed)

    async def keep(self, workspace: Workspace, dispatch_id: str) -> Removal:
        return await self._kept.leave(workspace, dispatch_id)

    async def holder(self, workspace: Workspace) -> str:
        return await self._kept.holder(workspace)

    async def hand_over(self, workspace: Workspace, giver: str, taker: str) -> bool:
        return await self._kept.hand_over(workspace, giver, taker)

    async def sweep_kept(self) -> tuple[str, ...]:
        return await self._kept.sweep()

    async def maintain(self) -> None:
        await pack(self._git, self._clock.now())

    async def shortage(self) -> str:
        short = await self._disk_shortage()
        if short and self._prepared:
            await self._prepared.empty()
            short = await self._disk_shortage()
        return short

    async def _disk_shortage(self) -> str:
        return await anyio.to_thread.run_sync(rooms.shortage, self._base_dir, self._min_free)

    async def prepare(self, wanted: int) -> None:
        if self._prepared is not None:
            base = await self._upstream.at_hand() if wanted else ""
            await self._prepared.prepare(wanted, base)

    async def exclude(self, paths: Sequence[str] = rooms.OUR_PATHS) -> None:
        """Have git overlook `paths`, anchored patterns, in every work tree of the repository.

        Adds what is missing to `info/exclude`; never touches a tracked file (behaviour D9).
        """
        async with self._git.lock():
            await anyio.to_thread.run_sync(rooms.exclude, self._git.common_dir, paths)

    def _place(self, names: Names) -> Path:
        if not FOLDER.fullmatch(names.folder) or not BRANCH.fullmatch(names.branch):
            raise Refused(f"{names.folder!r} and {names.branch!r} are no names for a worktree")
        return self._base_dir / names.folder

    def _make_room(self, path: Path) -> None:
        try:
            self._base_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._base_dir} cannot be made: {error.strerror}") from error
        if os.path.realpath(path) != str(path):
            raise Refused(f"{path} leads elsewhere, to {os.path.realpath(path)}; remove the link")

    async def _refuse_taken(self, path: Path) -> frozenset[Path]:
        if await anyio.to_thread.run_sync(os.path.lexists, path):
            raise Refused(f"{path} exists already; move it away")
        if await self._entry(path) is not None:
            raise Refused(f"{path} is registered already; run `git worktree list`")
        return frozenset(await anyio.to_thread.run_sync(registrations.admins, self._git.common_dir))

    async def _make(self, workspace: Workspace, reason: str) -> bool:
        """Have git make a worktree; say whether it has to be read to be verified."""
        reads = True

        async def ask() -> None:
            nonlocal reads
            with contextlib.suppress(Refused, Unavailable):
                reads = await self._conversions.is_any(workspace.base)

        failed: Refused | Unavailable | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            try:
                await self._git.text(
                    *(*written_with(), "worktree", "add", "--no-track"),
                    *("--lock", "--reason", reason, "-b", workspace.branch),
                    *("--", workspace.path, workspace.base),
                    timeout=checkouts.TIMEOUT,
                )
            except (Refused, Unavailable) as error:
                failed = error
        if failed is not None:
            raise failed
        return reads

    async def _undo(
        self,
        workspace: Workspace,
        lock: contextlib.AbstractAsyncContextManager[None],
        before: frozenset[Path],
    ) -> None:
        """Leave nothing of a failed add behind; `before` are the entries there were."""
        path = Path(workspace.path)
        with anyio.move_on_after(UNDO_S, shield=True):
            try:
                async with lock:
                    # What git has not yet written a path into is told by its name.
                    new = (
                        entry
                        for entry in await self._entries()
                        if entry.admin not in before
                        and (entry.path or path) == path
                        and entry.admin.name.startswith(path.name)
                    )
                    trash = await self._detach(workspace, next(new, None), workspace.base)
            except (Refused, Unavailable, OSError) as error:
                log.warning("worktree.undo_failed", path=workspace.path, error=str(error))
            else:
                await anyio.to_thread.run_sync(rooms.delete, trash)
                log.info("worktree.undone", path=workspace.path)

    async def _take_down(
        self,
        workspace: Workspace,
        entry: Registration | None,
        tip: str,
        dispatch_id: str,
        cleared: Cleared | None = None,
    ) -> bool:
        """Take away what was examined; false when its place was given to another meanwhile."""
        async with self._git.lock():
            now = await self._entry(Path(workspace.path))
            if now is not None and (entry is None or now.admin != entry.admin):
                is_ours = False
            else:
                is_ours = not is_anothers(now, dispatch_id)
            if not is_ours:
                log.debug("worktree.reassigned", path=workspace.path, dispatch=dispatch_id)
                return False
            with anyio.CancelScope(shield=True):
                if now is not None and self._prepared is not None:
                    taken = await self._prepared.take_back(workspace, now, cleared)
                    now = None if taken else now
                trash = await self._detach(workspace, now, tip)
        await anyio.to_thread.run_sync(rooms.delete, trash)
        return True

    async def _detach(
        self, workspace: Workspace, entry: Registration | None, tip: str
    ) -> tuple[Path, ...]:
        """Take folder, registration and branch away, each in one step; return what to delete.

        Not by `git worktree prune`, which would forget strangers' worktrees on unmounted disks.
        """
        trash = await anyio.to_thread.run_sync(
            rooms.throw_away,
            Path(workspace.path),
            None if entry is None else entry.admin,
            self._git.common_dir,
        )
        ref = f"refs/heads/{workspace.branch}"
        in_use = await anyio.to_thread.run_sync(registrations.checked_out, self._git.common_dir)
        if tip and ref not in in_use:
            deletion = ("update-ref", "--no-deref", "-d", "--", ref, tip)
            deleted = await self._git.run(*deletion)
            if deleted.code == 0:
                section = f"branch.{workspace.branch}"
                settings = self._git.common_dir / "config"
                if await anyio.to_thread.run_sync(rooms.mentions, settings, workspace.branch):
                    await self._git.run("config", "--local", "--remove-section", section)
            elif isinstance(error := failure(deletion, deleted), Unavailable):
                # Without its folder it is examined again, and goes, once the lock is free.
                await anyio.to_thread.run_sync(rooms.delete, trash)
                raise error
        return trash

    async def _entries(self) -> tuple[Registration, ...]:
        return await anyio.to_thread.run_sync(registrations.registrations, self._git.common_dir)

    async def _entry(self, path: Path) -> Registration | None:
        return await anyio.to_thread.run_sync(registrations.registered, self._git.common_dir, path)
