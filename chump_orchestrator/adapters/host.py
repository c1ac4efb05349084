"""The machine's own clock, and the time zones that it knows."""

from __future__ import annotations

import time
from datetime import UTC, datetime, tzinfo


class HostClock:
    """`core.ports.Clock` as this machine tells it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def zone(name: str) -> tzinfo | None:
    """Return a time zone by its name, `None` for one that there is not; "" is this machine's.

    Blocks for as long as a small file takes to read.
    """
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError  # noqa: PLC0415 - seldom needed

    if not name:
        return datetime.now(UTC).astimezone().tzinfo
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # of a name that is a path, or a folder
        return None
