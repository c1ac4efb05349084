"""Entries as they were parsed, and the file that keeps them, so that a start costs no parse.

The file is a convenience: one that is damaged, of another version or another person's is as good
as none, and a new one is written.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import stat
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field, fields, replace
from datetime import date, timedelta
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from chump_orchestrator import __version__
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Effort, Gap, Kind, Notice, Place, Priority, Rejection

Remark = tuple[str, int, int]
"""Something odd in an entry, and where in its own bytes, line and column from 0."""

SETTLED_S = 2.0
"""What was changed more lately than that may change again without its times telling it."""

LARGEST_BYTES = 1 << 30

_HEADER_BYTES = 4096
_SLICE = struct.Struct("<QI")
"""Before each slice: how long it is, and its sum."""

_ENTRIES = 1000
"""In a slice at most."""

_GAP, _REJECTION = 0, 1
_PRIORITIES = {one.value: one for one in Priority}
_EFFORTS = {one.value: one for one in Effort}
_KINDS = {one.value: one for one in Kind}
_FORMAT = f"{__version__} {sys.implementation.cache_tag} {' '.join(f.name for f in fields(Gap))}"


@dataclass(slots=True)
class Found:
    """What a text holds: its entries in order, and what is odd about them."""

    entries: list[Gap | Rejection] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


@dataclass(slots=True)
class Parsed:
    """An entry, and what it was made of: line and column within its own bytes, from 0."""

    entry: Gap | Rejection
    line: int
    column: int
    lines: int
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the file held: all of a text that had this `stamp`, and the pieces of it by digest."""

    stamp: str
    found: Found
    pieces: dict[bytes, Parsed]


def moved(entry: Gap | Rejection, order: int, place: Place) -> Gap | Rejection:
    """Return the same entry at another place.

    An added line moves all that follows it: this is done for most of a backlog at once.
    """
    if not isinstance(entry, Gap):
        return replace(entry, place=place)
    made = _blank(Gap)
    _set_id(made, entry.id)
    _set_title(made, entry.title)
    _set_priority(made, entry.priority)
    _set_effort(made, entry.effort)
    _set_status(made, entry.status)
    _set_kind(made, entry.kind)
    _set_depends_on(made, entry.depends_on)
    _set_closed_date(made, entry.closed_date)
    _set_auto_dispatch_ok(made, entry.auto_dispatch_ok)
    _set_deadline(made, entry.deadline)
    _set_paths(made, entry.paths)
    _set_description(made, entry.description)
    _set_acceptance(made, entry.acceptance)
    _set_declared_domain(made, entry.declared_domain)
    _set_order(made, order)
    _set_place(made, place)
    return made


# A frozen class sets its fields in twice the time, and `dataclasses.replace` takes six times.
_blank: Callable[[type[Gap]], Gap] = object.__new__
(
    _set_id,
    _set_title,
    _set_priority,
    _set_effort,
    _set_status,
    _set_kind,
    _set_depends_on,
    _set_closed_date,
    _set_auto_dispatch_ok,
    _set_deadline,
    _set_paths,
    _set_description,
    _set_acceptance,
    _set_declared_domain,
    _set_order,
    _set_place,
) = (vars(Gap)[one.name].__set__ for one in fields(Gap))


def keep(
    cache: Path,
    name: str,
    stamp: str,
    changed_s: float,
    found: Found,
    pieces: Mapping[bytes, Parsed],
) -> None:
    """Write what was parsed of the file `name` into the file `cache`. Blocks; raises nothing.

    `changed_s` is when that file was last changed, in seconds since the epoch: nothing is kept of
    one that may have changed since without its times telling it. `pieces` are those of `found`, in
    its order, or none where the text was parsed as a whole. Nothing is written where the folder of
    `cache` is not there.
    """
    if pieces and len(pieces) != len(found.entries):
        return  # the same bytes twice, which is rejected anyhow
    header = {"format": _FORMAT, "file": name, "stamp": stamp}
    with contextlib.suppress(OSError):
        # Another's, or a link, is not written to; in a container each life has the same pid.
        draft = cache.with_name(f".{cache.name}-{os.getpid()}-{os.urandom(4).hex()}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                # By the file system's own clock.
                if os.fstat(handle).st_mtime - changed_s < SETTLED_S:
                    raise BlockingIOError
                file.write(json.dumps(header).encode() + b"\n")
                for told in _slices(found, pieces):
                    body = marshal.dumps(told)
                    file.write(_SLICE.pack(len(body), zlib.crc32(body)) + body)
            draft.replace(cache)
        except BaseException as error:
            draft.unlink(missing_ok=True)
            if not isinstance(error, OSError | ValueError):
                raise


def _slices(found: Found, pieces: Mapping[bytes, Parsed]) -> Iterator[list[tuple[object, ...]]]:
    """Yield all that is kept, some entries at a time, so that it never lies in memory as a whole.

    First their number and the notices.
    """
    notices = [(one.message, one.place.line, one.place.column) for one in found.notices]
    yield [(len(found.entries), notices)]
    digests: Iterable[bytes] = pieces or (b"",) * len(found.entries)
    told = (
        (digest, *_told(entry), *_origin(pieces.get(digest)))
        for digest, entry in zip(digests, found.entries, strict=True)
    )
    while some := list(islice(told, _ENTRIES)):
        yield some


def recall(cache: Path, name: str) -> Kept | None:
    """Return what was kept of the file `name`, or `None`. Blocks; raises nothing.

    Only what this user has written is believed.
    """
    try:
        with open(cache, "rb", opener=_open) as file:
            about = os.fstat(file.fileno())
            is_ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid()
            if not is_ours or about.st_mode & 0o022 or about.st_size > LARGEST_BYTES:
                return None
            header = json.loads(file.readline(_HEADER_BYTES))
            if header["format"] != _FORMAT or header["file"] != name:
                return None
            return _recalled(name, header["stamp"], _sliced(file))
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError, struct.error):
        return None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _told(entry: Gap | Rejection) -> tuple[object, ...]:
    place = entry.place
    if isinstance(entry, Rejection):
        said: tuple[object, ...] = (entry.id, entry.reason, entry.status, entry.slug)
        return (_REJECTION, said, place.line, place.column)
    said = (
        entry.id,
        entry.title,
        entry.priority.value,
        entry.effort.value,
        entry.status,
        entry.kind.value,
        entry.depends_on,
        None if entry.closed_date is None else entry.closed_date.toordinal(),
        entry.auto_dispatch_ok,
        None if entry.deadline is None else entry.deadline.total_seconds(),
        entry.paths,
        entry.description,
        entry.acceptance,
        entry.declared_domain,
    )
    return (_GAP, said, place.line, place.column)


def _origin(piece: Parsed | None) -> tuple[object, ...]:
    return () if piece is None else (piece.line, piece.column, piece.lines, piece.remarks)


def _sliced(file: BinaryIO) -> Iterator[list[Any]]:
    """Yield what `_slices` gave; `ValueError` for what is damaged."""
    while head := file.read(_SLICE.size):
        length, crc = _SLICE.unpack(head)
        body = file.read(min(length, LARGEST_BYTES))
        if zlib.crc32(body) != crc:
            raise ValueError("it is damaged")
        yield marshal.loads(body)  # noqa: S302 - our own


def _recalled(name: str, stamp: str, slices: Iterator[list[Any]]) -> Kept | None:
    found, pieces = Found(), dict[bytes, Parsed]()
    entries = found.entries
    ((count, notices),) = next(slices, [(0, ())])
    for digest, kind, said, line, column, *origin in chain.from_iterable(slices):
        place = Place(name, line, column)
        made = _gap(said, len(entries), place) if kind == _GAP else _rejection(said, place)
        entries.append(made)
        if origin:
            pieces[digest] = Parsed(made, *origin)
    if len(entries) != count:
        return None  # it ends early
    found.notices += (Notice(told, Place(name, line, column)) for told, line, column in notices)
    return Kept(stamp, found, pieces)


def _gap(said: list[Any], order: int, place: Place) -> Gap:
    gap_id, title, priority, effort, status, kind, needs, closed, opted_in, deadline_s = said[:10]
    paths, description, acceptance, domain = said[10:]
    return Gap(
        gap_id,
        title,
        _PRIORITIES[priority],
        _EFFORTS[effort],
        status,
        _KINDS[kind],
        needs,
        None if closed is None else date.fromordinal(closed),
        opted_in,
        None if deadline_s is None else timedelta(seconds=deadline_s),
        paths,
        description,
        acceptance,
        domain,
        order,
        place,
    )


def _rejection(said: list[Any], place: Place) -> Rejection:
    gap_id, reason, status, slug = said
    return Rejection(gap_id, reason, place, status, slug)
