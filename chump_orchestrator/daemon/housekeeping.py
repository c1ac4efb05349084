"""Once a day: what was kept for long enough goes, logs of dispatches and salvaged worktrees."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import Refused, Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FIRST = timedelta(minutes=1)
"""After the start, so as not to be in the way of the first dispatches."""

AGAIN = timedelta(days=1)


async def run(world: World) -> None:
    """Clean up every day, until cancelled."""
    await anyio.sleep(FIRST.total_seconds())
    while True:
        await clean(world)
        await anyio.sleep(AGAIN.total_seconds())


async def clean(world: World) -> None:
    """Delete what is older than the operator keeps; what cannot be deleted waits for the next time.

    Only what ended dispatches have left, and of worktrees only those that are whole in their
    snapshots. The ledger and the snapshots stay.
    """
    before = world.clock.now() - world.policies.keep_logs
    try:
        await world.worktrees.sweep_kept()
        there = await world.executor.known()
        for dispatch_id, ended_at in (await world.ledger.ends(there)).items():
            if ended_at is not None and ended_at < before:
                await world.executor.discard(dispatch_id)
                log.info("dispatch.discarded", dispatch=dispatch_id)
    except (Unavailable, Refused) as error:
        log.warning("housekeeping.unfinished", error=str(error))
