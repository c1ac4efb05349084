"""Making a worktree again what its seal says, once nothing in it can be lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees import handover, rooms, seals
from chump_orchestrator.adapters.worktrees.checkouts import written_with
from chump_orchestrator.adapters.worktrees.handover import Member
from chump_orchestrator.adapters.worktrees.holdings import Held, are_there, differences
from chump_orchestrator.adapters.worktrees.losses import SLOW
from chump_orchestrator.adapters.worktrees.seals import EXACT, Seal
from chump_orchestrator.adapters.worktrees.traces import REMEMBERED, Traces, parents_of
from chump_orchestrator.core.errors import Unavailable

GRAIN_S = 2 * seals.GRAIN_NS / 1e9
"""Waited for after files were written, so that their times tell every change from then on."""


async def restore(git: Git, member: Member, base: str, place: Path) -> Seal | None:
    """Make a sealed worktree again what its seal says, bring it to `base`, and seal it anew.

    What is foreign goes. Files that were touched become new ones, so that no mode, link or
    attribute of theirs is left; those in which `base` differs are written, and each of them is
    compared with what `base` holds. `None` where they are not that byte for byte: somebody has to
    look at all of it. Raises `Unavailable` and `Refused` when it cannot be done; the worktree is
    not to be used then. The copy of its index goes to `place`, and the earlier one.
    """
    seal, traces = member.seal, member.traces or Traces()
    path, admin = member.path, member.admin
    if seal is None:
        return None
    if member.traces is not None:
        await anyio.to_thread.run_sync(_clear_away, path, admin, seal, traces)
        member.traces = None
    if traces == Traces() and base == seal.base:
        return seal
    if traces.touched:
        await git.text(
            *(*EXACT, "checkout-index", "--quiet", "--force", "--index", "-z", "--stdin"),
            cwd=path,
            feed=b"".join(os.fsencode(name) + b"\0" for name, _ in traces.touched),
            timeout=SLOW,
        )
    changed = {**dict(traces.touched), **await differences(git, seal.base, base)}
    if base != seal.base:
        move = (*written_with(), "read-tree", "-m", "-u", seal.base, base)
        await git.text(*move, cwd=path, timeout=SLOW)
        await anyio.to_thread.run_sync(handover.put_at, admin, base)
        member.base = base
    if not await anyio.to_thread.run_sync(_are_there, path, changed):
        return None
    await anyio.sleep(GRAIN_S)
    parents = {
        parent
        for name in (*changed, *traces.foreign, *(f"{folder}/" for folder in traces.folders))
        for parent in parents_of(name)
    }
    return await anyio.to_thread.run_sync(seals.renew, seal, path, admin, base, place, parents)


def _are_there(path: Path, expected: Mapping[str, Held]) -> bool:
    try:
        return are_there(path, expected)
    except OSError:
        return False


def _clear_away(path: Path, admin: Path, seal: Seal, traces: Traces) -> None:
    try:
        modes = dict(zip(seal.folders, seal.modes, strict=True))
        for name in ("", *traces.folders):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE((path / name).lstat().st_mode) != modes[name]:
                    (path / name).chmod(modes[name])
        # Those touched as well: git leaves them where only the second of a change is the same.
        foreign = frozenset(traces.foreign)
        for name in (*traces.foreign, *dict(traces.touched)):
            if name.endswith("/"):
                rooms.delete((path / name,))
            else:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    (path / name).unlink()
            if name in foreign and os.path.lexists(path / name):
                raise Unavailable(f"{path / name} cannot be deleted")
        forget(admin)
        draft = admin / "index.chump"
        shutil.copy2(seal.index, draft)
        draft.replace(admin / "index")
    except OSError as error:
        raise Unavailable(f"{path} cannot be made like new: {error.strerror}") from error


def forget(admin: Path) -> None:
    """Delete what git remembers there of who worked in it. Blocks."""
    for name in REMEMBERED:
        with contextlib.suppress(FileNotFoundError):
            if name == "logs":
                shutil.rmtree(admin / name)
            else:
                (admin / name).unlink()
