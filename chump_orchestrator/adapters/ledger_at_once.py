"""The ledger for a command that only looks: read in the thread that asks, without a loop.

What is asked for, and what its rows mean, is that of `ledger`; only who carries it out differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.ledger_schema import for_reading
from chump_orchestrator.adapters.sqlite import Result, SqliteThread, Work, schema_version

if TYPE_CHECKING:
    from chump_orchestrator.core.attempts import Attempt
    from chump_orchestrator.core.ports import Clock


class ReadsAtOnce(SqliteThread):
    """Carries out each request, on a snapshot of its own, before `run` returns."""

    async def run(self, work: Work[Result], *, shield: bool = False) -> Result:  # noqa: ARG002 - there is nothing to shield
        """Do `work` and return its result, or raise what it raised; waits for nothing."""
        return self._looked(work)

    async def close(self) -> None:
        """Close the connection; twice is fine."""
        self._drop()


class LedgerAtOnce(SqliteLedger):
    """What a ledger holds at one moment; all of its dispatches in brief are read once."""

    _told: tuple[Attempt, ...] | None = None

    async def chronicle(self) -> tuple[Attempt, ...]:
        if self._told is None:
            self._told = await super().chronicle()
        return self._told


async def look_into(path: Path, *, clock: Clock) -> LedgerAtOnce:
    """Open the ledger for reading, a missing one as an empty one, without waiting for anything.

    No lock is needed, and nothing is made or changed. Raises what `SqliteLedger.open` does.
    """
    reader = ReadsAtOnce(path, lambda: for_reading(path, readonly=True), writes=False)
    ledger = LedgerAtOnce(path, clock, None, reader)
    try:
        await reader.run(schema_version)
    except BaseException:
        await ledger.close()
        raise
    return ledger
