"""The disk beneath the worktrees: trash, free space, notes and what git overlooks. Blocks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from chump_orchestrator.core.errors import Refused, Unavailable

TRASH = ".trash-"
"""Begins the names of folders, beside the worktrees, that wait for deletion."""

ADMIN_TRASH = "chump-trash"
"""The same in git's common directory, which may lie on another file system."""

LEAVING = "chump-gone"
"""What a registration's `gitdir` is called from when it is to go; git overlooks those without."""

FAREWELL_S = 0.02
"""For git commands that have begun to read a registration; they need a millisecond at most."""

LEAST_INODES = 20_000
"""A worktree needs one for each file and folder; large repositories have that many."""


OUR_PATHS = (
    "/.claude/worktrees/",
    "/.chump/orchestrator/",
    "/.chump/state.db*",
    "/.chump-locks/",
    "/sessions/chump_memory.db*",
    "/.chump/secrets.env",
)
"""What git is told to overlook in the main work tree (behaviour D9)."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is remembered of a worktree that was kept; `since` is in UTC.

    Not `complete` when its snapshot lacks something, so that it is kept until a person looks.
    """

    dispatch: str
    branch: str
    base: str
    since: datetime
    complete: bool


def throw_away(path: Path, admin: Path | None, common_dir: Path) -> tuple[Path, ...]:
    """Rename a worktree and its administrative folder into the trash; return what to delete.

    Either may be gone already. Raises `Unavailable` when the file system refuses.

    Whatever git command an agent runs meanwhile goes through all registrations, and fails when
    one vanishes that it has begun to read. So this one is first made one that git overlooks, and
    goes when those that had begun are through with it.
    """
    trash = []
    try:
        if path.is_dir() and not path.is_symlink():
            place = Path(tempfile.mkdtemp(prefix=TRASH, dir=path.parent))
            trash.append(place)
            path.rename(place / path.name)
        if admin is not None and admin.is_dir():
            aside = common_dir / ADMIN_TRASH
            aside.mkdir(exist_ok=True)
            place = Path(tempfile.mkdtemp(dir=aside))
            trash.append(place)
            with contextlib.suppress(FileNotFoundError):  # git itself may tidy up at any time
                (admin / "gitdir").rename(admin / LEAVING)
                time.sleep(FAREWELL_S)
            with contextlib.suppress(FileNotFoundError):
                admin.rename(place / admin.name)
            with contextlib.suppress(OSError):
                admin.parent.rmdir()
    except OSError as error:
        raise Unavailable(f"{path} cannot be moved away: {error.strerror}") from error
    return tuple(trash)


def delete(trash: Sequence[Path]) -> None:
    """Delete folders for good; what resists is left for the next time the trash is emptied."""
    for place in trash:
        with contextlib.suppress(OSError, RecursionError):
            shutil.rmtree(place)
        if place.exists():
            with contextlib.suppress(OSError):
                _level(place)
            with contextlib.suppress(RecursionError):
                shutil.rmtree(place, ignore_errors=True)


def _level(place: Path) -> None:
    """Delete a folder that goes deeper than paths, or recursion, can, or that resists.

    What lies in a folder of it is moved up beside that. Tool chains make folders that not even
    their owner may write into.
    """
    numbers = itertools.count()
    place.chmod(0o700)
    waiting = [Path(one.path) for one in os.scandir(place) if one.is_dir(follow_symlinks=False)]
    while waiting:
        folder = waiting.pop()
        with contextlib.suppress(OSError):
            folder.chmod(0o700)
            with os.scandir(folder) as listed:
                entries = list(listed)
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    Path(entry.path).unlink()
                    continue
                Path(entry.path).chmod(0o700)
                beside = next(
                    free for n in numbers if not os.path.lexists(free := place / f".up-{n}")
                )
                Path(entry.path).rename(beside)
                waiting.append(beside)
            folder.rmdir()


def empty_trash(base_dir: Path, common_dir: Path) -> None:
    """Delete what earlier deletions have left."""
    for folder, pattern in ((base_dir, f"{TRASH}*"), (common_dir / ADMIN_TRASH, "*")):
        delete([place for place in folder.glob(pattern) if not place.is_symlink()])


def shortage(folder: Path, min_free: int) -> str:
    """Return what there is too little of beneath `folder`, or empty; 0 asks for nothing."""
    if min_free <= 0:
        return ""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), folder)
    try:
        room = os.statvfs(there)
    except OSError as error:
        return f"{there} cannot be looked at: {error.strerror}"
    free = room.f_bavail * room.f_frsize
    if free < min_free:
        return f"{there} has {free / 2**20:.0f} MiB free, {min_free / 2**20:.0f} MiB are wanted"
    # Some file systems have no fixed number of inodes and say 0.
    if room.f_files and room.f_favail < LEAST_INODES:
        return f"{there} has {room.f_favail} inodes free, {LEAST_INODES} are wanted"
    return ""


def exclude(common_dir: Path, patterns: Sequence[str]) -> None:
    """Add the patterns that are missing to `info/exclude`, which is the operator's file.

    Raises `Refused` when it cannot be written.
    """
    file = common_dir / "info" / "exclude"
    try:
        file.parent.mkdir(exist_ok=True)
        text = file.read_bytes() if file.exists() else b""
        present = {os.fsdecode(line).strip() for line in text.splitlines()}
        missing = [pattern for pattern in dict.fromkeys(patterns) if pattern not in present]
        if missing:
            first = b"\n" if text and not text.endswith(b"\n") else b""
            with file.open("ab") as opened:
                opened.write(first + b"".join(os.fsencode(f"{line}\n") for line in missing))
    except OSError as error:
        raise Refused(f"{file} cannot be written: {error.strerror}; see its permissions") from error


def mentions(config: Path, word: str) -> bool:
    """Whether a file of git's settings may have a section of that name."""
    try:
        return '"' in word or os.fsencode(word) in config.read_bytes()
    except OSError:
        return True


def write_note(file: Path, note: Note) -> None:
    """Write a note in one step. Raises `Unavailable` when the file system refuses."""
    text = json.dumps(
        {
            "v": 1,
            "dispatch": note.dispatch,
            "branch": note.branch,
            "base": note.base,
            "since": note.since.isoformat(),
            "complete": note.complete,
        }
    )
    draft = file.with_name(f"{file.name}.new")
    try:
        draft.write_text(text, "utf-8")
        draft.replace(file)
    except OSError as error:
        raise Unavailable(f"{file} cannot be written: {error.strerror}") from error


def read_note(file: Path) -> Note | None:
    """Return a note, or `None` when there is none that can be understood."""
    try:
        found = json.loads(file.read_text("utf-8"))
        return Note(
            str(found["dispatch"]),
            str(found["branch"]),
            str(found["base"]),
            datetime.fromisoformat(found["since"]),
            found["complete"] is True,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
