"""What would be lost with a worktree, told without changing anything in it.

Work is whatever is uncommitted, untracked or unpushed. Ignored files are not, but for those that
the operator names.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import anyio
import anyio.to_thread

from chump_orchestrator.adapters.git import Git, failure
from chump_orchestrator.adapters.git_manners import last_lines
from chump_orchestrator.adapters.worktrees.registrations import Registration, processes_inside
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.errors import Refused

SALVAGED = "refs/chump/salvage/"
"""Followed by a dispatch id: a snapshot of its worktree."""

SLOW = timedelta(minutes=5)
"""For commands that read every file of a worktree, through filters perhaps."""

QUIET = (
    "-c",
    "core.untrackedCache=false",
    "-c",
    "core.safecrlf=false",
)
"""A look at a worktree neither writes to its index nor remarks on its line endings."""

IN_PROGRESS = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
    "sequencer": "a sequence of picks",
    "BISECT_LOG": "a bisection",
}
"""Left in a worktree's administrative folder by an operation that is not finished."""

OVERLOOKED = re.compile(rb"(?:\A|\0)[a-zS] ")
"""In what `ls-files -v -z` lists, a file that git was told to overlook."""

MADE_AGAIN = frozenset(
    {"node_modules", "target", "vendor", "venv", ".venv", ".tox", ".cache", ".gradle"}
    | {"__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", "site-packages"}
)
"""Ignored folders that tools fill and fill again: not searched for files to be kept, since what
other people's packages carry in there is nobody's work here."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What there is to lose; with no `reasons`, nothing.

    `tip` is the branch's commit, `commits` are all those that a snapshot has to hold, HEAD's
    first. `dirty` says that files differ from HEAD, `precious` are the ignored ones to be kept.
    `nested` repositories do not fit into a snapshot. `pushed`: a commit of it is on a remote.
    """

    reasons: tuple[str, ...]
    tip: str
    commits: tuple[str, ...]
    dirty: bool
    precious: tuple[str, ...]
    nested: tuple[str, ...]
    pushed: bool


class Losses:
    """Looks at worktrees of one repository.

    `prefix` begins the branches of dispatches, `keep_ignored` are the patterns of ignored files
    that count as work; one with a slash is matched against the whole path in the worktree.
    """

    def __init__(self, git: Git, prefix: str, keep_ignored: Sequence[str]) -> None:
        self._git = git
        self._prefix = prefix
        self._keep_ignored = tuple(keep_ignored)

    async def examine(
        self, workspace: Workspace, entry: Registration | None, base_ref: str
    ) -> Findings:
        """Say what would be lost with this worktree and its branch.

        `entry` of `None` means that git does not know the worktree any more; a workspace without
        a base is one whose add was cut short. Raises `Refused` or `Unavailable` when that cannot
        be told: then nothing may be removed.
        """
        path = Path(workspace.path)
        exists = await anyio.to_thread.run_sync(path.is_dir)
        reasons: list[str] = []
        if exists:
            inside = await anyio.to_thread.run_sync(processes_inside, path)
            reasons += [f"{process} works in it" for process in inside]
        tip = await self._git.commit(f"refs/heads/{workspace.branch}")
        head = tip
        if entry is not None and entry.branch != f"refs/heads/{workspace.branch}":
            head = await self._git.commit(entry.branch or entry.head)
        begun = await anyio.to_thread.run_sync(underway, entry)
        reasons += [f"{name} is in progress" for name in sorted({name for name, _ in begun})]
        stashes = await self.stashes(workspace.branch, head)
        if stashes:
            reasons.append(f"{len(stashes)} stashed in it")

        dirty, precious, nested = False, tuple[str, ...](), tuple[str, ...]()
        if exists:
            changed, ignored = await self._status(path, entry, head or workspace.base)
            dirty = bool(changed)
            precious = await anyio.to_thread.run_sync(self.precious, path, ignored)
            nested = await self._nested(path, entry, head or workspace.base, changed)
            if dirty:
                reasons.append(f"{len(changed)} uncommitted or untracked, first {changed[0]!r}")
            if precious:
                reasons.append(f"{len(precious)} ignored but to be kept, first {precious[0]!r}")
            reasons += [f"{place!r} is a repository of its own" for place in nested]

        tips = [oid for oid in dict.fromkeys((head, tip)) if oid]
        if await self.unpushed(workspace, tips):
            reasons.append("commits of it are on no remote and not merged")
        others = [await self._git.commit(oid) for _, oid in begun if oid]
        commits = (*tips, *(oid for oid in (*others, *stashes) if oid))
        return Findings(
            tuple(reasons),
            tip,
            tuple(dict.fromkeys(commits)),
            dirty,
            precious,
            nested,
            await self.is_pushed(workspace, tips, base_ref),
        )

    async def unpushed(self, workspace: Workspace, tips: Sequence[str]) -> bool:
        """Whether a commit of these is on no remote, and not merged."""
        # Snapshots are no reason to remove, and neither are branches that may be removed next.
        safe = (
            *filter(None, (workspace.base,)),
            f"--exclude={SALVAGED}*",
            "--glob=refs/chump/*",
            "--remotes",
            f"--exclude={self._prefix}*",
            f"--exclude={workspace.branch}",
            "--branches",
        )
        return bool(tips and await self._revisions("--max-count=1", *tips, "--not", *safe))

    async def is_pushed(self, workspace: Workspace, tips: list[str], base_ref: str) -> bool:
        """Whether a commit of a dispatch's own is on a remote."""
        if not tips:
            return False
        # Not what came from the base branch: an agent that merges it has pushed nothing.
        begun = [workspace.base] if workspace.base else []
        if upstream := await self._git.commit(base_ref):
            begun.append(upstream)
        own = await self._revisions(*tips, "--not", *begun)
        if own:
            unpushed = await self._revisions(*tips, "--not", *begun, "--remotes")
            if len(unpushed) < len(own):
                return True
        listed = await self._git.text(
            "for-each-ref", "--format=%(objectname)", f"refs/remotes/*/{workspace.branch}"
        )
        for oid in listed.split():
            if await self._revisions("--max-count=1", oid, "--not", *begun[:1]):
                return True
        return False

    async def _status(
        self, path: Path, entry: Registration | None, head: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        look = (
            *(*QUIET, "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all"),
            *("--ignored=matching", "--ignore-submodules=none"),
        )
        async with index(self._git, path, entry, head) as (env, _):
            is_hiding = bool(await _overlooked(self._git, path, env))
        async with index(self._git, path, entry, head, private=is_hiding) as (env, is_own):
            finished = await self._git.run(*look, cwd=path, env=env, timeout=SLOW)
        if finished.code != 0:
            raise failure(("status",), finished)
        if b"could not open directory" in finished.err:
            raise Refused(f"not all of its folders can be read: {last_lines(finished.err)}")
        lines = [os.fsdecode(line) for line in finished.out.split(b"\0") if line]
        ignored = tuple(line[3:] for line in lines if line.startswith("!!"))
        # Without its own index the checkout was never finished: what it lacks is no loss, and
        # the first column compares with a HEAD that may not be its own.
        changed = tuple(
            line[3:]
            for line in lines
            if not line.startswith("!!") and (is_own or line[1] not in " D")
        )
        return changed, ignored

    async def _nested(
        self, path: Path, entry: Registration | None, head: str, changed: Sequence[str]
    ) -> tuple[str, ...]:
        untracked = tuple(place for place in changed if place.endswith("/"))
        if not await anyio.to_thread.run_sync((path / ".gitmodules").exists):
            return untracked
        async with index(self._git, path, entry, head) as (env, _):
            listed = await self._git.run("ls-files", "--stage", "-z", cwd=path, env=env)
        unpushed = []
        for line in listed.out.split(b"\0"):
            place = os.fsdecode(line.partition(b"\t")[2])
            if not line.startswith(b"160000 ") or not (path / place / ".git").exists():
                continue
            asked = await self._git.run(
                *("rev-list", "--max-count=1", "HEAD", "--branches", "--not", "--remotes"),
                cwd=path / place,
            )
            if asked.code != 0 or asked.out or place in changed:
                unpushed.append(place)
        return (*untracked, *unpushed)

    async def _revisions(self, *args: str) -> list[str]:
        return (await self._git.text("rev-list", *args, timeout=SLOW)).split()

    def precious(self, path: Path, ignored: Sequence[str]) -> tuple[str, ...]:
        """Return which of the ignored files and folders count as work. Blocks."""
        return tuple(place for place in _files(path, ignored) if self._is_to_be_kept(place))

    def _is_to_be_kept(self, place: str) -> bool:
        name = place.rpartition("/")[2]
        return any(
            fnmatch.fnmatchcase(place if "/" in pattern else name, pattern.lstrip("/"))
            for pattern in self._keep_ignored
        )

    async def stashes(self, branch: str, head: str) -> tuple[str, ...]:
        """Return what was stashed on a branch, or where `head` was checked out without one."""
        # All worktrees share one stash; its messages say the branch, its first parent the HEAD.
        listed = await self._git.run("stash", "list", "--format=%H%x00%P%x00%gs")
        found = []
        for line in listed.out.decode("utf-8", "replace").splitlines():
            oid, _, rest = line.partition("\0")
            parents, _, said = rest.partition("\0")
            is_detached = said.lower().removeprefix("wip ").startswith("on (no branch): ")
            if said.startswith((f"WIP on {branch}: ", f"On {branch}: ")) or (
                is_detached and head and parents.startswith(head)
            ):
                found.append(oid)
        return tuple(found)


@contextlib.asynccontextmanager
async def index(
    git: Git, path: Path, entry: Registration | None, head: str, *, private: bool = False
) -> AsyncIterator[tuple[dict[str, str], bool]]:
    """Yield the variables that make git look at `path` through an index, and whose that is.

    The second value tells whether the worktree has an index of its own; where it has not, the
    index is that of the commit `head`. With `private` it is a copy that may be written, and tells
    git to overlook nothing that is there.
    """
    # GIT_DIR is told, not looked up: an agent may have removed or replaced its .git.
    admin = git.common_dir if entry is None or entry.broken else entry.admin
    env = {"GIT_DIR": str(admin), "GIT_WORK_TREE": str(path)}
    own = admin / "index"
    is_own = admin != git.common_dir and await anyio.to_thread.run_sync(_is_filled, own)
    if is_own and not private:
        yield env, True
        return
    copy = admin / f"chump-index-{path.name}"
    env["GIT_INDEX_FILE"] = str(copy)
    try:
        if is_own:
            # With its time: git distrusts what is as young as the index that lists it, and would
            # trust all of it in a younger copy.
            await anyio.to_thread.run_sync(shutil.copy2, own, copy)
        else:
            await git.text("read-tree", head, cwd=path, env=env)
        if hidden := await _overlooked(git, path, env):
            for flag in ("--no-assume-unchanged", "--no-skip-worktree"):
                uncover = ("update-index", flag, "-z", "--stdin")
                await git.text(*uncover, cwd=path, env=env, feed=b"\0".join(hidden) + b"\0")
        yield env, is_own
    finally:
        with anyio.CancelScope(shield=True):
            for left in (copy, copy.with_name(f"{copy.name}.lock")):
                await anyio.to_thread.run_sync(functools.partial(left.unlink, missing_ok=True))


async def _overlooked(git: Git, path: Path, env: Mapping[str, str]) -> tuple[bytes, ...]:
    """Return the files that are there and that an index tells git to overlook."""
    listed = await git.run("ls-files", "-v", "-z", cwd=path, env=env)
    if OVERLOOKED.search(listed.out) is None:
        return ()
    return await anyio.to_thread.run_sync(_there, os.fsencode(path), listed.out)


def _there(path: bytes, listed: bytes) -> tuple[bytes, ...]:
    lines = (line.partition(b" ") for line in listed.split(b"\0")[:-1])
    hidden = (name for mark, _, name in lines if mark.islower() or mark == b"S")
    return tuple(name for name in hidden if os.path.lexists(path + b"/" + name))


def underway(entry: Registration | None) -> list[tuple[str, str]]:
    """Return what was begun in a worktree and not finished, each with a commit of it. Blocks."""
    if entry is None:
        return []
    found = []
    for name, what in IN_PROGRESS.items():
        place = entry.admin / name
        if place.is_file():
            found += (
                [(what, oid) for oid in _oids(place)] if name.endswith("HEAD") else [(what, "")]
            )
        elif place.is_dir():
            heads = [oid for part in ("orig-head", "onto") for oid in _oids(place / part)]
            found += [(what, oid) for oid in heads or [""]]
    return found


def _oids(file: Path) -> list[str]:
    try:
        return [word for word in file.read_text("ascii").split() if len(word) in (40, 64)]
    except (OSError, ValueError):
        return []


def _is_filled(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _files(path: Path, ignored: Sequence[str]) -> Iterator[str]:
    for place in ignored:
        if not place.endswith("/"):
            yield place
            continue
        if place.rstrip("/").rpartition("/")[2] in MADE_AGAIN:
            continue
        for folder, folders, files in os.walk(path / place, onerror=_unreadable):
            folders[:] = [name for name in folders if name not in MADE_AGAIN]
            yield from (str(Path(folder, file).relative_to(path)) for file in files)


def _unreadable(error: OSError) -> None:
    raise Refused(f"{error.filename} cannot be read: {error.strerror}") from error
