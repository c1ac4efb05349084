"""The leases that lie in a folder, whoever wrote them, and which of them count.

Reading only. Whatever cannot be read is told, neither trusted nor removed (behaviour L1 to L3).
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import is_gap_id, plain
from chump_orchestrator.core.records import Lease
from chump_orchestrator.telling import Logger

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Clock

log = Logger()

LARGEST_BYTES = 64 * 1024
"""Larger files are no leases."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A lease as its file tells it; `fields` are all that it says."""

    file: Path
    gap: str
    holder: str
    taken_at: datetime
    expires_at: datetime
    fields: Mapping[str, Any]

    @property
    def rank(self) -> tuple[datetime, str]:
        """Who was first: the least of several claims on a gap counts."""
        return (self.taken_at, self.holder)


class LeaseFolder:
    """The folder `dir`, and the `.chump-locks` of the worktrees in `worktrees_dir`.

    What cannot be read is told once as long as it stays so.
    """

    def __init__(self, dir: Path, worktrees_dir: Path) -> None:  # noqa: A002 - the name of the setting
        self._dir = dir
        self._worktrees_dir = worktrees_dir
        self._unreadable: dict[Path, str] = {}

    @property
    def notices(self) -> tuple[str, ...]:
        """What was not readable when the leases were last read, a sentence each."""
        return tuple(f"{file}: {why}" for file, why in self._unreadable.items())

    def claims(self) -> tuple[Claim, ...]:
        """Return all claims that can be read. Blocks."""
        claims, unreadable = self._read_all()
        for file, why in unreadable.items():
            if self._unreadable.get(file) != why:
                log.warning("lease.ignored", path=str(file), why=why)
        self._unreadable = unreadable
        return claims

    def _read_all(self) -> tuple[tuple[Claim, ...], dict[Path, str]]:
        claims = []
        unreadable = {}
        for file in self._files():
            try:
                claim = _read(file)
            except FileNotFoundError:
                continue
            except OSError as error:
                unreadable[file] = f"cannot be read: {error.strerror}"
            except (ValueError, TypeError, RecursionError, OverflowError) as error:
                unreadable[file] = f"is no lease: {plain(str(error))[:200]}"
            else:
                claims.append(claim)
        return tuple(claims), unreadable

    def _files(self) -> Iterator[Path]:
        folders = [self._dir]
        with contextlib.suppress(OSError):
            worktrees = sorted(self._worktrees_dir.iterdir())
            folders += [worktree / ".chump-locks" for worktree in worktrees]
        for folder in folders:
            with contextlib.suppress(OSError):
                yield from sorted(
                    file
                    for file in folder.iterdir()
                    if file.suffix == ".json" and not file.name.startswith(".")
                )


def _read(file: Path) -> Claim:
    # Not blocking: what lies there may be a pipe.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        content = opened.read(LARGEST_BYTES + 1)
    if len(content) > LARGEST_BYTES:
        raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")
    fields = json.loads(content.decode("utf-8-sig"))
    if not isinstance(fields, dict):
        raise TypeError("it is no mapping")
    holder = fields.get("session_id")
    if not isinstance(holder, str) or not holder.strip():
        raise TypeError("session_id is missing or no text")
    return Claim(
        file,
        _gap_in(fields),
        plain(holder)[:128],
        _moment(fields, "taken_at"),
        _moment(fields, "expires_at"),
        fields,
    )


def _gap_in(fields: Mapping[str, Any]) -> str:
    gap, purpose = fields.get("gap_id"), fields.get("purpose")
    if not gap and isinstance(purpose, str):
        gap = purpose.removeprefix("gap:")
    return gap if isinstance(gap, str) and is_gap_id(gap) else ""


def _moment(fields: Mapping[str, Any], name: str) -> datetime:
    text = fields.get(name)
    if not isinstance(text, str):
        raise TypeError(f"{name} is missing or no text")
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{name} is no instant") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)


def live(claims: Iterable[Claim], now: datetime) -> tuple[Lease, ...]:
    """Return the leases that count now, one for each gap and holder."""
    latest: dict[tuple[str, str], Lease] = {}
    for claim in claims:
        if not claim.gap or claim.expires_at <= now:
            continue
        known = latest.get((claim.gap, claim.holder))
        if known is None or known.expires_at < claim.expires_at:
            lease = Lease(claim.gap, claim.holder, claim.expires_at)
            latest[claim.gap, claim.holder] = lease
    return tuple(latest.values())


class LeasesAtOnce:
    """Who holds what, for a command that only looks: read when asked, without a loop."""

    def __init__(self, folder: LeaseFolder, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock

    async def live(self) -> tuple[Lease, ...]:
        """Return what `core.ports.Leases` promises, without waiting for anything."""
        return live(self._folder.claims(), self._clock.now())
