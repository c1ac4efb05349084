"""A damaged ledger, moved aside and begun anew; its rows come back from what lies beside it."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.adapters.sqlite import Corrupt
from chump_orchestrator.core.ports import Clock
from chump_orchestrator.core.records import Pause
from chump_orchestrator.telling import Logger

log = Logger()


async def open_or_begin_anew(path: Path, *, clock: Clock) -> SqliteLedger:
    """Open the ledger for writing; a damaged one is moved aside and a new one begun.

    A new one is paused until `resume`. Recovery makes its rows anew. What else the old one held,
    such as gaps that an operator has parked, does not come back; so a person is to look before
    agents are started. Raises as `SqliteLedger.open` does.
    """
    aside = await anyio.to_thread.run_sync(_left_aside, path)
    if aside is None:
        try:
            return await _opened_and_read(path, clock)
        except Corrupt as error:
            why = str(error)
        aside = await SqliteLedger.put_aside(path, clock=clock)
        log.error("ledger.put_aside", path=str(path), aside=str(aside), error=why)
    ledger = await SqliteLedger.open(path, clock=clock)
    reason = (
        f"the ledger was damaged and lies in {aside} now; what it told of dispatches was read"
        " from their folders: look at `history` and `status`, then `resume`"
    )
    await ledger.set_pause(Pause("recovery", reason, clock.now()))
    return ledger


async def _opened_and_read(path: Path, clock: Clock) -> SqliteLedger:
    """Open the ledger and read all that a daemon goes by, so that damage is found at once."""
    ledger = await SqliteLedger.open(path, clock=clock)
    try:
        for read in (ledger.records, ledger.outbox, ledger.parked, ledger.pause, ledger.fuse):
            await read()
    except BaseException:
        await ledger.close()
        raise
    return ledger


def _left_aside(path: Path) -> Path | None:
    """Return a damaged ledger that was moved aside by somebody who then came no further."""
    if path.exists():
        return None
    moved = sorted(path.parent.glob(f"{path.name}.corrupt-*"))
    return next((one for one in reversed(moved) if not one.name.endswith(("-wal", "-shm"))), None)
