"""git's own list of worktrees, read as plain files.

One half-made entry can make git itself fail for the whole repository, so nothing here asks git.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
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

USUAL = "../.."
"""What every `commondir` says that git has written, which is right wherever it is."""

_HEAD = re.compile(r"ref: refs/\S+|(?!0+$)[0-9a-f]{40}(?:[0-9a-f]{24})?")

PROCESSES = "/proc"
"""Where Linux has a folder for every process."""

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
    return tuple(_read(admin, common_dir) for admin in admins(common_dir))


def registered(common_dir: Path, path: Path) -> Registration | None:
    """Return the entry that speaks of the worktree `path`, if there is one. Blocks."""
    for admin in admins(common_dir):
        # Of the others, one file is enough: there may be many.
        if _place(admin, _text(admin / "gitdir") or "") == path:
            return _read(admin, common_dir)
    return None


def checked_out(common_dir: Path) -> frozenset[str]:
    """Return the full names of the branches checked out in any work tree. Blocks.

    What does not say where its work tree is has none; git overlooks it, too.
    """
    heads = [_text(common_dir / "HEAD")]
    heads += [_text(admin / "HEAD") for admin in admins(common_dir) if _text(admin / "gitdir")]
    return frozenset(head.removeprefix("ref: ") for head in heads if head)


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
    try:
        return tuple(
            f"{name} ({pid})" for pid, name in _working(lambda place: place.startswith(inside))
        )
    except OSError as error:
        raise Unavailable(
            f"who works in {path} cannot be told now: {error.strerror}; free some and try again"
        ) from error


def _working(is_meant: Callable[[str], bool]) -> Iterator[tuple[int, str]]:
    """Find the processes that work where `is_meant` says, told with a slash at the end."""
    if sys.platform == "linux":
        # As psutil would, which reads three files of every process first.
        with os.scandir(PROCESSES) as entries:
            for one in entries:
                with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
                    if one.name.isdigit() and is_meant(_link(f"{one.path}/cwd") + os.sep):
                        yield int(one.name), _text(Path(one.path, "comm")) or "?"
    else:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if is_meant(f"{_place_of(process)}{os.sep}"):
                    yield process.pid, process.name()


def _link(place: str) -> str:
    return os.readlink(place)  # noqa: PTH115 - of hundreds, each time


def _place_of(process: psutil.Process) -> str:
    """Return where a process works, empty when that is not said; `OSError` for a shortage."""
    try:
        return process.cwd()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return ""


def admins(common_dir: Path) -> list[Path]:
    """Return the folders of all entries, by name. Blocks; raises nothing."""
    folder = common_dir / "worktrees"
    try:
        there = sorted(folder.iterdir())
    except OSError:
        return []
    return [admin for admin in there if admin.is_dir()]


def _place(admin: Path, gitdir: str) -> Path | None:
    """Return the worktree that a `gitdir` names, relative to `admin` where it is."""
    return Path(os.path.normpath(os.path.join(admin, gitdir))).parent if gitdir else None  # noqa: PTH118


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
    elif commondir != USUAL and (
        not commondir or os.path.realpath(admin / commondir) != os.path.realpath(common_dir)
    ):
        broken = "its commondir is missing or wrong"
    return Registration(admin, _place(admin, gitdir), _text(admin / "locked"), head, broken)


def _text(file: Path) -> str | None:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fsdecode(os.read(descriptor, LARGEST_BYTES)).strip()
    except OSError:
        return None
    finally:
        os.close(descriptor)
