"""What is done by hand, in files, when a prepared worktree changes hands. Blocks."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chump_orchestrator.adapters import rooms
from chump_orchestrator.adapters.registrations import registrations
from chump_orchestrator.core.errors import Unavailable

NEEDED = frozenset({"HEAD", "commondir", "gitdir", "index", "locked", "refs"})
"""What git has in the administrative folder of every worktree."""

REMEMBERED = frozenset(
    {"ORIG_HEAD", "FETCH_HEAD", "COMMIT_EDITMSG", "MERGE_MSG", "AUTO_MERGE", "logs"}
)
"""What it has there of who worked in it."""


@dataclass(slots=True)
class Member:
    """A prepared worktree, its administrative folder, and the commit it is at."""

    path: Path
    admin: Path
    base: str


def hand_over(member: Member, path: str, ref: str, reason: str) -> bool:
    """Lock a member for a dispatch, put it on its branch, and rename it. Blocks.

    What git's own commands do, without their processes; false where its files are not what they
    are everywhere today, and nothing is changed then.
    """
    admin, gitdir = member.admin, member.admin / "gitdir"
    try:
        if (
            (admin / "HEAD").read_text("ascii").strip() != member.base
            or gitdir.read_text("utf-8").rstrip("\n") != f"{member.path}/.git"
            or not Path((member.path / ".git").read_text("utf-8")[8:]).is_absolute()
        ):
            return False
        relock(admin, reason)
        _replace(admin / "HEAD", f"ref: {ref}")
        member.path.rename(path)
        _replace(gitdir, f"{path}/.git")
    except (OSError, ValueError) as error:
        raise Unavailable(f"{member.path} cannot become {path}: {error}") from error
    return True


def relock(admin: Path, reason: str) -> None:
    """Lock a worktree for another reason, in one step."""
    try:
        _replace(admin / "locked", reason)
    except OSError as error:
        raise Unavailable(f"{admin} cannot be written: {error.strerror}") from error


def _replace(file: Path, line: str) -> None:
    draft = file.with_name(f"{file.name}.chump")
    draft.write_text(f"{line}\n", "utf-8")
    draft.replace(file)


def is_ordinary(path: Path, admin: Path) -> bool:
    """Whether a worktree is set up as git sets them up."""
    try:
        names = {one.name for one in admin.iterdir()}
        if names - NEEDED - REMEMBERED or (path / ".git").is_symlink():
            return False
        if any(files for _, _, files in os.walk(admin / "refs")):
            return False
        told = (path / ".git").read_text("utf-8").removeprefix("gitdir:").strip()
        return os.path.realpath(path / told) == os.path.realpath(admin)
    except (OSError, ValueError):
        return False


def forget(admin: Path) -> None:
    """Delete what git remembers there of who worked in it."""
    for name in REMEMBERED:
        with contextlib.suppress(FileNotFoundError):
            if name == "logs":
                shutil.rmtree(admin / name)
            else:
                (admin / name).unlink()


def are_ordinary(path: Path, listed: Sequence[str]) -> bool:
    """Whether git looks at every one of its files, and none is one of elsewhere, too."""
    for line in listed:
        mark, _, name = line.partition(" ")
        if mark != "H":
            return False
        try:
            found = (path / name).lstat()
        except OSError:
            return False
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            return False
    return True


def clean_up(folder: Path, common_dir: Path) -> None:
    """Throw away every worktree in `folder`, and what of them lies elsewhere. Blocks."""
    if folder.is_symlink():
        return
    places = set(folder.iterdir()) if folder.is_dir() else set()
    admins = {
        entry.path: entry.admin
        for entry in registrations(common_dir)
        if entry.path is not None and entry.path.parent == folder
    }
    trash: list[Path] = []
    for place in places | admins.keys():
        trash += rooms.throw_away(place, admins.get(place), common_dir)
    rooms.delete(trash)
