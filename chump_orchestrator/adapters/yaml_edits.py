"""What a text was when it was last cut up, so that of one that was edited only the edit is read.

What stands before the first and behind the last byte that differs means what it meant: an entry is
parsed alone, and where it begins is told by the line's own first bytes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from chump_orchestrator.adapters.parsed import Parsed

LONGEST = 4 * 1024 * 1024
"""Bytes of the longest text that is remembered: some 2,500 gaps. A longer one would take more
memory than it is worth."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A text, where each of its entries begins in it, and what came of them, by digest.

    No two entries have the same bytes. `indentation` is that of the dashes of the list.
    """

    data: bytes
    indentation: int
    starts: Sequence[int]
    digests: Sequence[bytes]
    parsed: Sequence[Parsed]

    def edited(self, data: bytes) -> tuple[int, int, bytes] | None:
        """Compare with another text; `None` unless the edit lies well within the list.

        Otherwise it returns how many entries are the same before it, which is the first one
        behind it that is, and the bytes between these in `data`.
        """
        old, starts = self.data, self.starts
        before = _same_before(old, data)
        # Of the first that may differ, dash and blank at least are as they were.
        first = bisect_right(starts, before - self.indentation - 2) - 1
        if first < 0:
            return None
        behind = _same_behind(old, data, min(len(old), len(data)) - starts[first])
        # The newline before an entry belongs to what makes it begin there.
        last = bisect_left(starts, len(old) - behind + 1)
        if not first < last < len(starts):
            return None
        return first, last, data[starts[first] : len(data) - (len(old) - starts[last])]


def _same_before(one: bytes, other: bytes) -> int:
    """Return how many bytes are the same at the beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _same_behind(one: bytes, other: bytes, most: int) -> int:
    """Return how many bytes are the same at the end, `most` at most."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low
