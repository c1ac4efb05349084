"""What somebody has left in a worktree that was sealed, found in one pass over its files.

It proves that nothing is lost with them, and is the list of what has to go or to be written anew.
Where it is in any doubt it says nothing, and `losses` looks for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.worktrees import holdings, seals
from chump_orchestrator.adapters.worktrees.holdings import NOTHING, Held
from chump_orchestrator.adapters.worktrees.losses import SLOW, Losses, underway
from chump_orchestrator.adapters.worktrees.registrations import Registration, processes_inside
from chump_orchestrator.adapters.worktrees.seals import EXACT, Seal
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused

NEEDED = frozenset({"HEAD", "commondir", "gitdir", "index", "locked", "refs"})
"""What git has in the administrative folder of every worktree."""

REMEMBERED = frozenset(
    {"ORIG_HEAD", "FETCH_HEAD", "COMMIT_EDITMSG", "MERGE_MSG", "AUTO_MERGE", "logs"}
)
"""What it has there of who worked in it."""


@dataclass(frozen=True, slots=True)
class Traces:
    """How to make a worktree again what its seal says.

    `touched` are files of its base that are not the very ones they were, or are gone, with what
    the base holds there; `foreign` is what else is there, a folder with a slash at its end and
    without what is in it; `folders` are those in which something came or went.
    """

    touched: tuple[tuple[str, Held], ...] = ()
    foreign: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cleared:
    """A worktree of which nothing can be lost; `tip` is its branch's commit.

    `pushed`: a commit of it is on a remote. `traces` are what is left of who worked in it.
    """

    tip: str
    pushed: bool
    traces: Traces


class Clearing:
    """Looks at sealed worktrees of one repository."""

    def __init__(self, git: Git, losses: Losses) -> None:
        self._git = git
        self._losses = losses

    async def clear(
        self, workspace: Workspace, entry: Registration, seal: Seal, base_ref: str
    ) -> Cleared | None:
        """Prove that nothing would be lost with a worktree; `None` where that is not easy.

        Nothing is changed. Raises `Unavailable` as git does.
        """
        path = Path(workspace.path)
        if entry.broken or entry.branch != f"refs/heads/{workspace.branch}":
            return None
        if not await anyio.to_thread.run_sync(_is_at_rest, path, entry):
            return None
        try:
            tip, pushed = await self._history(workspace, seal, base_ref)
            if not tip or not await self._is_staged_nowhere_else(path, entry, seal, tip):
                return None
            held = await holdings.differences(self._git, seal.base, tip)
            traces = await self._traces(path, entry, seal, held)
            if traces is None or not await self._is_safe(path, entry, traces.foreign, held):
                return None
        except (Refused, OSError, RecursionError):
            return None
        return Cleared(tip, pushed, traces)

    async def _history(self, workspace: Workspace, seal: Seal, base_ref: str) -> tuple[str, bool]:
        """Return the tip, empty where commits may be lost, and whether one is on a remote."""
        ref = f"refs/heads/{workspace.branch}"
        listed = await self._git.text(
            *("for-each-ref", "--format=%(objectname) %(refname)", "--"),
            *(ref, "refs/stash", f"refs/remotes/*/{workspace.branch}"),
        )
        oids = {name: oid for oid, _, name in (line.partition(" ") for line in listed.split("\n"))}
        tip = oids.get(ref, "")
        if "refs/stash" in oids and await self._losses.stashes(workspace.branch, tip):
            return "", False
        if tip == workspace.base == seal.base and not oids.keys() - {ref, "refs/stash"}:
            return tip, False
        if tip and await self._losses.unpushed(workspace, [tip]):
            return "", False
        return tip, await self._losses.is_pushed(workspace, [tip] if tip else [], base_ref)

    async def _is_staged_nowhere_else(
        self, path: Path, entry: Registration, seal: Seal, tip: str
    ) -> bool:
        """Whether the index holds what the commit `tip` does."""
        if tip == seal.base and seal.digest:
            digest = await anyio.to_thread.run_sync(seals.digest_of, entry.admin / "index")
            if digest == seal.digest:
                return True
        env = {"GIT_DIR": str(entry.admin), "GIT_WORK_TREE": str(path)}
        compared = await self._git.run(
            *(*EXACT, "diff-index", "--cached", "--quiet", tip, "--"),
            cwd=path,
            env=env,
        )
        return compared.code == 0

    async def _traces(
        self, path: Path, entry: Registration, seal: Seal, held: Mapping[str, Held]
    ) -> Traces | None:
        """Return them when every file is what HEAD holds, or is foreign; else `None`."""
        env = {
            "GIT_DIR": str(entry.admin),
            "GIT_WORK_TREE": str(path),
            "GIT_INDEX_FILE": str(seal.index),
        }
        look = ("diff-files", "-z", "--raw", "--no-abbrev", "--")
        shown = await self._git.run(*EXACT, *look, cwd=path, env=env, timeout=SLOW)
        if shown.code != 0:
            raise failure(look, shown)
        folders = await anyio.to_thread.run_sync(seals.changed_folders, seal, path)
        plain = seal.index.parent
        if folders is None or await anyio.to_thread.run_sync(
            seals.are_marked, path, folders, plain
        ):
            return None
        tracked = dict.fromkeys(seal.names.split("/"), NOTHING)
        if any(folders) or seal.young:
            tracked |= await holdings.listed(self._git, path, env)
        told = (path, seal, folders, tracked, shown.out, held)
        return await anyio.to_thread.run_sync(_compared, *told)

    async def _is_safe(
        self,
        path: Path,
        entry: Registration,
        foreign: Sequence[str],
        held: Mapping[str, Held],
    ) -> bool:
        """Whether all that is foreign is held by HEAD, or ignored and not to be kept."""
        known = frozenset(name for name, what in held.items() if what.oid)
        others = await anyio.to_thread.run_sync(_others, path, foreign, known)
        if not others:
            return True
        asked = await self._git.run(
            *("check-ignore", "-z", "--stdin"),
            cwd=path,
            env={"GIT_DIR": str(entry.admin), "GIT_WORK_TREE": str(path)},
            # A colon in front would be the beginning of a pattern with magic.
            feed=b"".join(b"./%b\0" % os.fsencode(name) for name in others),
        )
        ignored = {os.fsdecode(name)[2:] for name in asked.out.split(b"\0") if name}
        if not ignored.issuperset(others):
            return False
        return not await anyio.to_thread.run_sync(self._losses.precious, path, others)


def _is_at_rest(path: Path, entry: Registration) -> bool:
    """Whether a worktree is where it should be, nobody works in it, and nothing is begun."""
    return (
        path.is_dir()
        and not path.is_symlink()
        and not processes_inside(path)
        and not underway(entry)
        and is_ordinary(path, entry.admin)
    )


def is_ordinary(path: Path, admin: Path) -> bool:
    """Whether a worktree is set up as git sets them up."""
    try:
        names = {one.name for one in admin.iterdir()}
        if names - NEEDED - REMEMBERED or (path / ".git").is_symlink():
            return False
        if any(files for _, _, files in os.walk(admin / "refs")):
            return False
        told = (path / ".git").read_text("utf-8").removeprefix("gitdir:").strip()
        return told == os.path.realpath(admin)
    except (OSError, ValueError):
        return False


def _compared(
    path: Path,
    seal: Seal,
    folders: tuple[str, ...],
    tracked: Mapping[str, Held],
    shown: bytes,
    held: Mapping[str, Held],
) -> Traces | None:
    """Return the traces, if all files that are not as they were are as `held` says, or the base.

    `shown` is what git says of files that differ from the seal. Raises `OSError`.
    """
    young = seals.changed_young(seal, path)
    touched = {name: tracked.get(name, NOTHING) for name in young}
    touched |= {name: Held(fields[0], fields[2]) for name, _, fields in holdings.raw(shown)}
    if not holdings.are_there(path, {**touched, **held}):
        return None
    foreign = seals.foreign_in(seal, path, folders, tracked)
    return Traces(tuple(touched.items()), foreign, tuple(name for name in folders if name))


def _others(path: Path, foreign: Sequence[str], known: frozenset[str]) -> tuple[str, ...]:
    """Return the foreign files and folders that are not `known`; not folders of nothing."""
    parents = {f"{parent}/" for name in known for parent in parents_of(name)}
    waiting, others = list(foreign), []
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        if name in parents:
            with os.scandir(path / name) as entries:
                waiting += [
                    f"{name}{entry.name}{'/' * entry.is_dir(follow_symlinks=False)}"
                    for entry in entries
                ]
        elif not name.endswith("/") or seals.has_files(path / name):
            others.append(name)
    return tuple(others)


def parents_of(name: str) -> Iterator[str]:
    """Return the folders that a file is in; those of a folder with a slash, and itself."""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name
