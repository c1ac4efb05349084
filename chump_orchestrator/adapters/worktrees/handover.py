"""What is done by hand, in files, when a prepared worktree changes hands. Blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chump_orchestrator.adapters.worktrees import rooms
from chump_orchestrator.adapters.worktrees.registrations import registrations
from chump_orchestrator.adapters.worktrees.seals import Seal
from chump_orchestrator.adapters.worktrees.traces import Traces
from chump_orchestrator.core.errors import Unavailable


@dataclass(slots=True)
class Member:
    """A prepared worktree, its administrative folder, and the commit it is at.

    `seal` is `None` until it was found clean. `traces` are what a dispatch has left in it that is
    to be made good, and `has_served` says that one had it.
    """

    path: Path
    admin: Path
    base: str
    seal: Seal | None = None
    traces: Traces | None = None
    has_served: bool = False


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


def hand_back(path: Path, admin: Path, place: Path, base: str, reason: str) -> bool:
    """Take a worktree from its branch, rename it to `place`, and lock it for `reason`. Blocks.

    The reverse of `hand_over`, in an order that leaves nothing which is not found: cut short, it
    is a folder without a registration, or lies in `place`. False where its files are not what
    they are everywhere today, and nothing is changed then.
    """
    gitdir = admin / "gitdir"
    try:
        if (
            gitdir.read_text("utf-8").rstrip("\n") != f"{path}/.git"
            or not Path((path / ".git").read_text("utf-8")[8:]).is_absolute()
        ):
            return False
        _replace(gitdir, f"{place}/.git")
        path.rename(place)
        _replace(admin / "HEAD", base)
        relock(admin, reason)
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} cannot become {place}: {error}") from error
    return True


def put_at(admin: Path, base: str) -> None:
    """Have a worktree's HEAD be a commit, and no branch."""
    try:
        _replace(admin / "HEAD", base)
    except OSError as error:
        raise Unavailable(f"{admin} cannot be written: {error.strerror}") from error


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
