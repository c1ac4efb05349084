"""git's own list of worktrees, read as plain files.

One half-made entry can make git itself fail for the whole repository, so nothing here asks git.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from chump_orchestrator.adapters.starting import SHORTAGES
from chump_orchestrator.core.errors import Unavailable

REASON = "chump:"
"""Begins the reason with which worktrees of ours are locked; the dispatch id follows."""

QUARANTINE = "chump-quarantine"
"""In git's common directory: broken entries of ours, kept for whoever wants to know."""

EMPTY_COMMONDIR = "its commondir is empty"
"""What is wrong with an entry that most commands of git give up at; others they overlook."""

_HEAD = re.compile(r"ref: refs/\S+|(?!0+$)[0-9a-f]{40}(?:[0-9a-f]{24})?")

LARGEST_BYTES = 8192
"""Of such a file; git's are a line long."""


@dataclass(frozen=True, slots=True)
class Registration:
    """One entry of the list: the folder `admin` beneath git's common directory.

    `path` is the worktree it speaks of, `None` where it does not say. `reason` is why it is
    locked, `None` where it is not. `broken` tells what is wrong with it, or is empty.
    """

    admin: Path
    path: Path | None
    reason: str | None
    head: str
    broken: str

    @property
    def stops_git(self) -> bool:
        """Whether git fails in the whole repository until this entry is gone, or whole."""
        return self.path is not None and self.broken == EMPTY_COMMONDIR

    @property
    def branch(self) -> str:
        """The full name of the branch that is checked out, or empty."""
        return self.head.removeprefix("ref: ") if self.head.startswith("ref: ") else ""

    def is_ours(self, base_dir: Path) -> bool:
        """Whether it was made for a dispatch, or speaks of a folder directly in `base_dir`."""
        in_base = self.path is not None and self.path.parent == base_dir
        return in_base or (self.reason or "").startswith(REASON)


def registrations(common_dir: Path) -> tuple[Registration, ...]:
    """Return every entry, by name. Blocks; raises nothing for what cannot be read."""
    try:
        admins = sorted((common_dir / "worktrees").iterdir())
    except OSError:
        return ()
    return tuple(_read(admin, common_dir) for admin in admins if admin.is_dir())


def registered(common_dir: Path, path: Path) -> Registration | None:
    """Return the entry that speaks of the worktree `path`, if there is one. Blocks."""
    return next((entry for entry in registrations(common_dir) if entry.path == path), None)


def checked_out(common_dir: Path) -> frozenset[str]:
    """Return the full names of the branches checked out in any work tree. Blocks.

    What does not say where its work tree is has none; git overlooks it, too.
    """
    main = _text(common_dir / "HEAD") or ""
    there = (entry for entry in registrations(common_dir) if entry.path is not None)
    return frozenset({entry.branch for entry in there} | {main.removeprefix("ref: ")})


def quarantine(entry: Registration, common_dir: Path) -> Path:
    """Put the entry aside, in one step, and return where it is now. Blocks."""
    aside = common_dir / QUARANTINE
    aside.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f"{entry.admin.name}-", dir=aside)) / entry.admin.name
    entry.admin.rename(place)
    return place


def end_orphans(base_dir: Path) -> None:
    """End commands that a killed orchestrator had begun in `base_dir`. Blocks for seconds.

    They are told by their command line, which names a worktree in `base_dir` and our reason.
    """
    inside = f"{base_dir}{os.sep}"
    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if (
                words[:1] == ["git"]
                and "worktree" in words
                and any(word.startswith(REASON) for word in words)
                and any(word.startswith(inside) for word in words)
            ):
                _kill(process)
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=5)


def _kill(process: psutil.Process) -> None:
    # It leads the group in which it was started, and its own children are in there.
    with contextlib.suppress(OSError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def processes_inside(path: Path) -> tuple[str, ...]:
    """Return the processes that work in `path` or below, as name and pid. Blocks; best effort.

    Raises `Unavailable` when this process is short of what looking takes: then somebody may be
    there all the same.
    """
    inside = f"{path}{os.sep}"
    found = []
    try:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if f"{_place_of(process)}{os.sep}".startswith(inside):
                    found.append(f"{process.name()} ({process.pid})")
    except OSError as error:
        raise Unavailable(
            f"who works in {path} cannot be told now: {error.strerror}; free some and try again"
        ) from error
    return tuple(found)


def _place_of(process: psutil.Process) -> str:
    """Return where a process works, empty when that is not said; `OSError` for a shortage."""
    try:
        return process.cwd()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return ""


def _read(admin: Path, common_dir: Path) -> Registration:
    gitdir = _text(admin / "gitdir") or ""
    head = _text(admin / "HEAD") or ""
    commondir = _text(admin / "commondir")
    broken = ""
    if gitdir and commondir == "":
        broken = EMPTY_COMMONDIR
    elif not gitdir:
        broken = "its gitdir is empty or missing"
    elif not _HEAD.fullmatch(head):
        broken = "its HEAD is empty or missing"
    elif not commondir or os.path.realpath(admin / commondir) != os.path.realpath(common_dir):
        broken = "its commondir is missing or wrong"
    path = Path(os.path.normpath(admin / gitdir)).parent if gitdir else None
    return Registration(admin, path, _text(admin / "locked"), head, broken)


def _text(file: Path) -> str | None:
    try:
        with file.open("rb") as opened:
            return os.fsdecode(opened.read(LARGEST_BYTES)).strip()
    except OSError:
        return None
