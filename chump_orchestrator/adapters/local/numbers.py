"""Numbers that come from a file or over a wire: within what they can mean, or not known at all."""

from __future__ import annotations

LONGEST_S = 10 * 366 * 86_400.0
"""No agent runs for longer than ten years."""

MOST = 2**63 - 1
"""Sizes and offsets; also the largest number that SQLite takes."""

LARGEST_PID = 2**31 - 1


def seconds(value: object) -> float | None:
    """Return a span of seconds, or `None` for what is none: no number, NaN, negative, endless."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= LONGEST_S else None


def whole(value: object, most: int = MOST, *, least: int = 0) -> int | None:
    """Return a whole number from `least` to `most`, or `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value <= most else None
