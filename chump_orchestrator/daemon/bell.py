"""A bell that one task waits for and any may ring: something happened, look again."""

from __future__ import annotations

from datetime import timedelta

import anyio


class Bell:
    """Remembers one ring, so that what happens while nobody waits is not missed."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake whoever waits, or let the next wait return at once."""
        self._rung.set()

    async def wait(self, at_most: timedelta | None = None) -> bool:
        """Wait for a ring, `at_most` so long; say whether there was one. Safe to cancel."""
        limit = None if at_most is None else max(at_most.total_seconds(), 0.0)
        with anyio.move_on_after(limit):
            await self._rung.wait()
        rung = self._rung.is_set()
        if rung:
            self._rung = anyio.Event()
        return rung
