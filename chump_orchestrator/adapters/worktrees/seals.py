"""What a prepared worktree is like before anybody works in it, to the inode. Blocks.

A file system stamps every inode with the time of its last change, and no program can set that
back. So what has the stamps of its seal was not touched since, whatever an agent has told its own
index to overlook, and nobody needs to read it.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chump_orchestrator.core.errors import Unavailable

YOUNG_NS = 1_000_000_000
"""How much older than its seal a file must be for git to see every later change by its times, of
which it compares the seconds."""

GRAIN_NS = 20_000_000
"""The same, where nanoseconds are compared: no kernel takes longer between two of its times."""

EXACT = (
    *("-c", "core.trustctime=true", "-c", "core.checkStat=default", "-c", "core.fileMode=true"),
    *("-c", "core.ignoreStat=false", "-c", "core.untrackedCache=false"),
    *("-c", "core.preloadIndex=false", "-c", "core.symlinks=true"),
)
"""git compares every stamp, whatever the repository's own settings say, and on one core: most
of the time others are at work."""

DIGEST_BYTES = 20
"""At the end of an index, the sum over all of it."""


@dataclass(frozen=True, slots=True)
class Seal:
    """A worktree at the commit `base` as it was; `index` is a copy of its index, with its time.

    `folders` are relative to it, the first is itself, with a stamp and a mode each; a stamp of 0
    tells nothing. `names` are those directly in it, a slash between each two. `young` are the
    stamps of files whose seconds tell nothing.
    """

    base: str
    index: Path
    digest: bytes
    folders: tuple[str, ...]
    stamps: array[int]
    modes: array[int]
    names: str
    young: Mapping[str, int]


def take(path: Path, admin: Path, base: str, place: Path) -> Seal:
    """Seal the worktree `path`, which is clean and in nobody's hands; the copy goes to `place`.

    Raises `Unavailable` when the file system refuses.
    """
    try:
        now_ns = _copy(admin, place)
        folders = tuple(_folders(path))
        looks = [_look(path, name, now_ns) for name in folders]
        names = _names(path)
        digest = digest_of(place)
    except OSError as error:
        raise Unavailable(f"{path} cannot be sealed: {error.strerror}") from error
    return _sealed(base, place, digest, dict(zip(folders, looks, strict=True)), names)


def renew(
    seal: Seal, path: Path, admin: Path, base: str, place: Path, changed: Collection[str]
) -> Seal:
    """Seal a worktree again of which nothing but the folders `changed` has changed.

    They are looked at anew, and may have come or gone. Raises as `take` does.
    """
    try:
        now_ns = _copy(admin, place)
        known = zip(seal.folders, seal.stamps, seal.modes, strict=True)
        looks = {name: _Look(stamp, mode, {}) for name, stamp, mode in known}
        for name in {"", *changed}:
            if (path / name).is_dir() and not (path / name).is_symlink():
                looks[name] = _look(path, name, now_ns)
            else:
                looks.pop(name, None)
        names = _names(path)
        digest = digest_of(place)
    except OSError as error:
        raise Unavailable(f"{path} cannot be sealed: {error.strerror}") from error
    return _sealed(base, place, digest, looks, names)


def _copy(admin: Path, place: Path) -> int:
    """Copy the index of a worktree, with its time; return what the file system calls now."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = place.with_name(f"{place.name}.new")
    shutil.copy2(admin / "index", draft)
    draft.replace(place)
    return place.stat().st_ctime_ns


def _sealed(base: str, place: Path, digest: bytes, looks: Mapping[str, _Look], names: str) -> Seal:
    young = {name: stamp for look in looks.values() for name, stamp in look.young.items()}
    stamps = array("q", (look.stamp for look in looks.values()))
    modes = array("H", (look.mode for look in looks.values()))
    return Seal(base, place, digest, tuple(looks), stamps, modes, names, young)


def digest_of(index: Path) -> bytes:
    """Return the sum at the end of an index, empty where git was told not to write one."""
    with index.open("rb") as opened:
        opened.seek(-DIGEST_BYTES, os.SEEK_END)
        digest = opened.read()
    return digest if any(digest) else b""


def changed_folders(seal: Seal, path: Path) -> tuple[str, ...] | None:
    """Return the folders whose stamps tell a change, or tell nothing; `None` if one is none now.

    Raises `OSError` when that cannot be told.
    """
    found = []
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, stamp in zip(seal.folders, seal.stamps, strict=True):
            try:
                seen = os.stat(name or ".", dir_fd=root, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                found.append(name)
                continue
            if not stat.S_ISDIR(seen.st_mode):
                return None
            if not stamp or _stamp(seen) != stamp:
                found.append(name)
    finally:
        os.close(root)
    return tuple(found)


def foreign_in(
    seal: Seal, path: Path, folders: Sequence[str], tracked: Collection[str]
) -> tuple[str, ...]:
    """Return what is in these folders and is neither `tracked` nor a folder of the seal's.

    A folder has a slash at its end, and nothing in it is named. Raises `OSError`.
    """
    own = {f"{name}/" for name in seal.folders}
    foreign = []
    for folder in folders:
        try:
            listed = os.scandir(path / folder)
        except FileNotFoundError:
            continue
        with listed as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False):
                    if f"{name}/" not in own:
                        foreign.append(f"{name}/")
                elif name not in tracked and not (not folder and name == ".git"):
                    foreign.append(name)
    return tuple(foreign)


def are_marked(path: Path, folders: Sequence[str], plain: Path) -> bool:
    """Whether folders bear what a checkout does not give them and `plain` has not either.

    That is extended attributes, lists of rights among them, another group, and macOS's flags. What
    the system labels by itself is not meant. Blocks. Raises `OSError`.
    """
    usual = _marks(plain)
    return any(
        os.path.lexists(path / folder) and not _marks(path / folder) <= usual for folder in folders
    )


def _marks(folder: Path) -> frozenset[object]:
    seen = folder.lstat()
    marks: set[object] = {("group", seen.st_gid), ("flags", getattr(seen, "st_flags", 0))}
    if hasattr(os, "listxattr"):
        try:
            names = os.listxattr(folder, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            names = []
        marks |= {name for name in names if not name.startswith("security.")}
    return frozenset(marks)


def has_files(folder: Path) -> bool:
    """Whether a folder holds anything but folders."""
    for place, folders, files in os.walk(folder, onerror=_raised):
        if files or any(Path(place, name).is_symlink() for name in folders):
            return True
    return False


def _raised(error: OSError) -> None:
    raise error


def _names(path: Path) -> str:
    # One text: there are a few seals for each slot, and a folder may hold thousands of names.
    return "/".join(os.listdir(path))  # noqa: PTH208 - `Path` would keep each name in a table


def _folders(path: Path) -> Iterator[str]:
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        yield folder
        with os.scandir(path / folder) as entries:
            waiting += [
                sys.intern(f"{folder}/{entry.name}" if folder else entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]


def changed_young(seal: Seal, path: Path) -> list[str]:
    """Return which of the young files are not as they were, or are gone. Raises `OSError`."""
    found = []
    for name, stamp in seal.young.items():
        try:
            seen = (path / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            found.append(name)
        else:
            if not stamp or _stamp(seen) != stamp:
                found.append(name)
    return found


@dataclass(frozen=True, slots=True)
class _Look:
    """What is seen of a folder: its stamp and mode, and the stamps of young files in it."""

    stamp: int
    mode: int
    young: Mapping[str, int]


def _look(path: Path, folder: str, now_ns: int) -> _Look:
    seen = (path / folder).lstat()
    young = {}
    # git makes a new file of each that it writes, so that its folder is young as well.
    if _age_ns(seen, now_ns) <= YOUNG_NS:
        with os.scandir(path / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir(follow_symlinks=False) or name == ".git":
                    continue
                file = entry.stat(follow_symlinks=False)
                if _age_ns(file, now_ns) <= YOUNG_NS:
                    young[name] = _certain(file, now_ns)
    # A worktree is renamed when it changes hands, which is a change of its own folder.
    stamp = _certain(seen, now_ns) if folder else 0
    return _Look(stamp, stat.S_IMODE(seen.st_mode), young)


def _age_ns(seen: os.stat_result, now_ns: int) -> int:
    return now_ns - max(seen.st_mtime_ns, seen.st_ctime_ns)


def _certain(seen: os.stat_result, now_ns: int) -> int:
    """Return the stamp if it tells every later change, else 0."""
    has_fractions = seen.st_ctime_ns % 1_000_000_000 != 0
    least_ns = GRAIN_NS if has_fractions else YOUNG_NS
    return _stamp(seen) if _age_ns(seen, now_ns) > least_ns else 0


def _stamp(seen: os.stat_result) -> int:
    told = hash((seen.st_ino, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_mode))
    return told or 1
