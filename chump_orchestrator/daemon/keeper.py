"""Keeps the last good backlog, and reads it again when it changes (behaviour B5)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.errors import Refused, Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import BacklogSource, Clock

log = structlog.get_logger()

GLANCE = timedelta(seconds=2)
"""How often the file's stamp is looked at; a glance costs one stat."""

TWICE_APART = timedelta(milliseconds=200)
"""Between the two reads that must agree: a file being written differs from one to the next."""

STAYS = timedelta(seconds=10)
"""A backlog from which open gaps have vanished is believed once it stayed so for so long."""


class BacklogKeeper:
    """Holds the backlog in use; what cannot be read or looks torn does not replace it.

    One that `is_trusted` comes whole or not at all, and is believed at once.
    """

    def __init__(
        self,
        source: BacklogSource,
        clock: Clock,
        on_change: Callable[[], None],
        tell: Callable[..., None],
        *,
        is_trusted: bool = False,
    ) -> None:
        self._source = source
        self._clock = clock
        self._on_change = on_change
        self._tell_all = tell
        self._is_trusted = is_trusted
        self._stamp = ""
        self._told = ""
        self._doubted: tuple[str, float] | None = None
        self.backlog = Backlog()
        self.problem = ""

    async def first(self) -> None:
        """Read the backlog for the first time; `Unavailable` or `Refused` when it cannot be."""
        self._stamp = await self._source.stamp()
        self._take(await self._source.load())

    async def run(self) -> None:
        """Read again whenever it changes, until cancelled."""
        while True:
            await anyio.sleep(GLANCE.total_seconds())
            await self.look()

    async def reload(self) -> str:
        """Read it now and believe it; returns what is wrong with it, or empty."""
        try:
            self._stamp = await self._source.stamp()
            self._take(await self._source.load())
        except (Unavailable, Refused) as error:
            self._tell(str(error))
            return str(error)
        return ""

    async def look(self) -> None:
        """Read it again if it has changed, and take it over unless it looks torn."""
        try:
            stamp = await self._source.stamp()
            if stamp == self._stamp and self._doubted is None:
                return
            fresh = await self._source.load()
            if not self._is_trusted:
                await anyio.sleep(TWICE_APART.total_seconds())
                if await self._source.stamp() != stamp:
                    return
        except (Unavailable, Refused) as error:
            self._tell(str(error))
            return
        vanished = [] if self._is_trusted else self._vanished(fresh)
        if vanished and not self._has_stayed(stamp):
            shown = ", ".join(vanished[:5]) + (" …" if len(vanished) > 5 else "")  # noqa: PLR2004
            self._tell(f"{len(vanished)} open gaps have vanished ({shown}); it may be torn")
            return
        self._stamp = stamp
        self._take(fresh)

    def _has_stayed(self, stamp: str) -> bool:
        now_s = self._clock.monotonic()
        if self._doubted is None or self._doubted[0] != stamp:
            self._doubted = (stamp, now_s)
            return False
        return now_s - self._doubted[1] >= STAYS.total_seconds()

    def _vanished(self, fresh: Backlog) -> list[str]:
        known = {gap.id for gap in fresh.gaps} | {entry.id for entry in fresh.rejected}
        return [gap.id for gap in self.backlog.gaps if gap.is_open and gap.id not in known]

    def _take(self, fresh: Backlog) -> None:
        self._doubted = None
        self._told = self.problem = ""
        changed = fresh is not self.backlog
        self.backlog = fresh
        if changed:
            log.info(
                "backlog.loaded",
                total=fresh.total,
                open=fresh.open,
                rejected=len(fresh.rejected),
                warnings=len(fresh.warnings),
            )
            self._tell_all("backlog.loaded", total=fresh.total, open=fresh.open)
            self._on_change()

    def _tell(self, problem: str) -> None:
        self.problem = problem
        if problem != self._told:
            self._told = problem
            log.warning("backlog.kept", problem=problem)
            self._tell_all("backlog.kept", problem=problem)
