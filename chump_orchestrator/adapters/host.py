"""The machine's own clock, and the time zones that it knows."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, tzinfo


class HostClock:
    """`core.ports.Clock` as this machine tells it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class _MachinesZone(tzinfo):
    """The zone that the machine is set to, whose clocks may be put forward and back."""

    def utcoffset(self, at: datetime | None) -> timedelta | None:
        here = None if at is None else at.replace(tzinfo=None).astimezone()
        return (here or datetime.now(UTC).astimezone()).utcoffset()

    def dst(self, at: datetime | None) -> timedelta | None:  # noqa: ARG002
        return None

    def tzname(self, at: datetime | None) -> str | None:
        here = None if at is None else at.replace(tzinfo=None).astimezone()
        return (here or datetime.now(UTC).astimezone()).tzname()

    def fromutc(self, at: datetime) -> datetime:
        here = at.replace(tzinfo=UTC).astimezone()
        shown = here.replace(tzinfo=None)
        # A clock that is put back shows the same hour twice.
        is_second = shown.astimezone().utcoffset() != here.utcoffset()
        return shown.replace(tzinfo=self, fold=int(is_second))


_MACHINES = _MachinesZone()


def zone(name: str) -> tzinfo | None:
    """Return a time zone by its name, `None` for one that there is not; "" is this machine's.

    Blocks for as long as a small file takes to read.
    """
    if not name:
        return _MACHINES
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - seldom needed

    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # of a name that is a path, or a folder
        return None
