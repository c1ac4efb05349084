"""Where work comes from: a YAML file, a folder of them, or a file as a git ref has it (B1, B5).

All reading and parsing is done in a worker thread. It goes from entry to entry in Python, so that
the loop gets its turns meanwhile, and makes no garbage that only the collector could find, so
that a large backlog can be kept out of the collector's way.
"""

from __future__ import annotations

import contextlib
import gc
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator.adapters.backlog_turns import InTurn, in_thread
from chump_orchestrator.adapters.backlog_turns import pause as _pause
from chump_orchestrator.adapters.parsed import (
    Found,
    Kept,
    Parsed,
    keep,
    moved,
    recall,
)
from chump_orchestrator.core.backlog import Backlog, assemble
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Place, Rejection, is_gap_id, slug_of

if TYPE_CHECKING:
    from chump_orchestrator.adapters.yaml_entries import Entries

SIZE_LIMIT = 256 * 1024 * 1024
"""Bytes of the largest file that is read: some 150,000 gaps."""

LARGE = 4 * 1024 * 1024
"""Bytes of backlog from which on the collector leaves it alone: some 2,500 gaps."""

CHUNK = 4 * 1024 * 1024
"""Bytes read at once; a file's list has to begin within the first ones to be cut up."""

SUFFIXES = (".yaml", ".yml")


class YamlFile(InTurn):
    """A file with a list `gaps`; what has not changed since the last load is not parsed again.

    In the file `cache` the last load lasts over restarts; with `None` it does not.
    """

    def __init__(self, *, path: Path, cache: Path | None = None) -> None:
        self._path = path
        self._cache = cache
        self._pieces: dict[bytes, Parsed] | None = None
        self._entries: Entries | None = None
        self._last: tuple[str, Backlog] | None = None

    async def stamp(self) -> str:
        return await in_thread(_stamp_of, self._path)

    async def load(self) -> Backlog:
        async with self._busy:
            return await in_thread(self._load)

    def load_at_once(self) -> Backlog:
        """Do what `load` does, in the calling thread, for a process that does nothing else."""
        return self._load()

    def _load(self) -> Backlog:
        stamp = _stamp_of(self._path)
        if self._last is not None and stamp and self._last[0] == stamp:
            return self._last[1]
        with _uncollected(_size_of(self._path)):
            if (kept := self._recall()) is not None and kept.stamp == stamp:
                backlog, read = assemble(kept.found.entries, kept.found.notices), stamp
            else:
                read, found = self._parse()
                backlog = assemble(found.entries, found.notices)
        if read:
            self._last = (read, backlog)
        return backlog

    def _recall(self) -> Kept | None:
        """Return what an earlier process has read, the first time."""
        if self._pieces is not None:
            return None
        kept = None if self._cache is None else recall(self._cache, str(self._path))
        self._pieces = {} if kept is None else kept.pieces
        return kept

    def _parse(self) -> tuple[str, Found]:
        """Read the file; returns the stamp that it had, empty when it may have changed since."""
        file = _File(self._path)
        if self._entries is None:
            self._entries, self._pieces = _entries(str(self._path), self._pieces), {}
        entries = self._entries
        with _refusing(str(self._path)):
            found = entries.read(file.chunks, _pause)
        if self._cache is not None and file.stamp:
            name = str(self._path)
            keep(self._cache, name, file.stamp, file.changed_s, found, entries.known)
        return file.stamp, found


class YamlRef(InTurn):
    """A file as a git ref has it (behaviour B5): `read` gets its bytes, `identify` its object id.

    `name` says which it is, such as `origin/main:docs/gaps.yaml`. What the two raise, among it
    `Unavailable`, is passed on.
    """

    def __init__(
        self,
        *,
        name: str,
        read: Callable[[], Awaitable[bytes]],
        identify: Callable[[], Awaitable[str]],
    ) -> None:
        self._name = name
        self._read = read
        self._identify = identify
        self._entries = _entries(name)
        self._last: tuple[str, Backlog] | None = None

    async def stamp(self) -> str:
        return await self._identify()

    async def load(self) -> Backlog:
        async with self._busy:
            stamp = await self._identify()
            if self._last is not None and stamp and self._last[0] == stamp:
                return self._last[1]
            data = await self._read()
            backlog = await in_thread(self._parse, data)
            # The ref may have moved on between the two questions.
            self._last = (stamp, backlog) if await self._identify() == stamp else None
            return backlog

    def _parse(self, data: bytes) -> Backlog:
        return _backlog_of(self._name, data, self._entries)


def read_at_once(name: str, data: bytes) -> Backlog:
    """Return what the text `data` holds, which `name` tells of; blocks."""
    return _backlog_of(name, data, _entries(name))


def _backlog_of(name: str, data: bytes, entries: Entries) -> Backlog:
    _check_size(name, len(data))
    with _uncollected(len(data)):
        with _refusing(name):
            found = entries.read(lambda: (data,), _pause)
        return assemble(found.entries, found.notices)


class YamlDirectory(InTurn):
    """A folder of files `<ID>.yaml` or `.yml`, each one entry or a mapping with a list `gaps`.

    The order of the files' names is that of the backlog. A file that cannot be used is an entry
    left out, with the reason; the others go on.
    """

    def __init__(self, *, path: Path) -> None:
        self._path = path
        self._known: dict[str, _Member] = {}
        self._last: tuple[str, Backlog] | None = None

    async def stamp(self) -> str:
        return await in_thread(self._stamp)

    async def load(self) -> Backlog:
        async with self._busy:
            return await in_thread(self._load)

    def load_at_once(self) -> Backlog:
        """Do what `load` does, in the calling thread, for a process that does nothing else."""
        return self._load()

    def _stamp(self) -> str:
        try:
            return _combined(_members(self._path))
        except OSError:
            return ""

    def _load(self) -> Backlog:
        try:
            members = _members(self._path)
        except OSError as error:
            raise _unavailable(self._path, error) from error
        stamp = _combined(members)
        if self._last is not None and self._last[0] == stamp:
            return self._last[1]
        known: dict[str, _Member] = {}
        whole = Found()
        for name, own_stamp in members:
            _pause()
            member = self._known.get(name)
            if member is None or not own_stamp or member.stamp != own_stamp:
                member = self._read(name)
            known[name] = member
            for entry in member.found.entries:
                whole.entries.append(moved(entry, len(whole.entries), entry.place))
            whole.notices += member.found.notices
        self._known = known
        backlog = assemble(whole.entries, whole.notices)
        # A file that changed meanwhile is read again at the next load.
        self._last = (stamp, backlog) if all(known[n].stamp == s for n, s in members) else None
        return backlog

    def _read(self, name: str) -> _Member:
        from chump_orchestrator.adapters.yaml_nodes import Broken  # noqa: PLC0415 - slow to import

        path = self._path / name
        entries = _entries(str(path))
        stamp = ""
        try:
            file = _File(path)
            data = b"".join(file.chunks())
            stamp = file.stamp
            return _Member(stamp, entries.read_whole(data, _pause, alone=True))
        except Broken as broken:
            return _Member(stamp, _left_out(path, broken.problem, broken.line, broken.column))
        except (Unavailable, Refused) as error:
            return _Member("", _left_out(path, str(error), 1, 1))


@dataclass(frozen=True, slots=True)
class _Member:
    """What a file of a folder held when its stamp was this one."""

    stamp: str
    found: Found


@dataclass(slots=True)
class _File:
    """A regular file, read in chunks.

    `stamp` is that of what was last read to its end, empty before; `changed_s` is when that was
    last changed, in seconds since the epoch.
    """

    path: Path
    stamp: str = field(default="")
    changed_s: float = field(default=0.0)

    def chunks(self) -> Iterator[bytes]:
        self.stamp = ""
        try:
            with open(self.path, "rb", buffering=0, opener=_open) as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise Unavailable(f"{self.path}: not a regular file; see backlog.path")
                _check_size(str(self.path), before.st_size)
                left = before.st_size + 1
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk
                after = os.fstat(file.fileno())
        except OSError as error:
            raise _unavailable(self.path, error) from error
        if _stamp_from(before) != _stamp_from(after):
            raise Unavailable(f"{self.path}: it changed while it was read; it is read again")
        self.stamp = _stamp_from(before)
        self.changed_s = max(before.st_mtime, before.st_ctime)


def _open(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def _uncollected(size: int) -> Iterator[None]:
    """Keep Python's collector from walking what `size` bytes of backlog become.

    It stops every thread, and with it the loop, for as long as it walks: up to 0.8 s for 100,000
    gaps, measured with CPython 3.11. What has been read holds no cycles; it goes when nobody
    refers to it any more, collector or not.
    """
    if size < LARGE or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _stamp_of(path: Path) -> str:
    try:
        return _stamp_from(path.stat())
    except (OSError, ValueError):
        return ""


def _stamp_from(found: os.stat_result) -> str:
    # Also when it was last changed in any way: tools that copy keep the other instant.
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}-{found.st_ino}"


def _members(folder: Path) -> list[tuple[str, str]]:
    """Return the names of the files in the folder, sorted, and their stamps."""
    with os.scandir(folder) as listing:
        names = sorted(
            entry.name
            for entry in listing
            if entry.name.endswith(SUFFIXES) and not entry.name.startswith(".")
        )
    return [(name, _stamp_of(folder / name)) for name in names]


def _combined(members: Sequence[tuple[str, str]]) -> str:
    import hashlib  # noqa: PLC0415 - slow to import, and for folders alone

    told = "\0".join(f"{name}/{stamp}" for name, stamp in members)
    return f"{len(members)}-{hashlib.sha256(os.fsencode(told)).hexdigest()}"


def _left_out(path: Path, problem: str, line: int, column: int) -> Found:
    """Return the file as one entry left out, under the id that its name gives."""
    gap_id = path.stem if is_gap_id(path.stem) else ""
    place = Place(str(path), line, column)
    reason = f"the file cannot be used: {problem}"
    return Found([Rejection(gap_id, reason, place, slug=slug_of(gap_id))])


def _check_size(name: str, size: int) -> None:
    if size > SIZE_LIMIT:
        limit = SIZE_LIMIT // 1024**2
        raise Refused(f"{name}: larger than {limit} MiB; split it or move what is done out of it")


def _entries(name: str, known: dict[bytes, Parsed] | None = None) -> Entries:
    from chump_orchestrator.adapters.yaml_entries import Entries  # noqa: PLC0415 - slow to import

    return Entries(name, known)


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn what makes a text no backlog into a refusal that says where, and what to do."""
    from chump_orchestrator.adapters.yaml_nodes import Broken  # noqa: PLC0415 - slow to import

    try:
        yield
    except Broken as broken:
        place = Place(name, broken.line, broken.column)
        msg = f"{place}: {broken.problem}; mend the backlog there, or set backlog.path"
        raise Refused(msg) from broken


def _unavailable(path: Path, error: OSError) -> Unavailable:
    reason = error.strerror or str(error)
    return Unavailable(f"{path}: the backlog cannot be read: {reason}; see backlog.path")
