"""Takes reflections from the outbox to the journal; late if need be, never twice, never lost."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Refused, Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.daemon.bell import Bell
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=2)
"""Between two attempts at a journal that cannot be written; doubles."""


async def deliver(world: World) -> bool:
    """Deliver what is in the outbox; say whether it is empty now."""
    try:
        for reflection in await world.ledger.outbox():
            if world.journal is not None:
                await world.journal.record(reflection)
            await world.ledger.delivered(reflection.dispatch)
    except (Unavailable, Refused) as error:
        log.warning("journal.unavailable", error=str(error))
        return False
    return True


async def run(world: World, outbox: Bell) -> None:
    """Deliver whenever the bell rings, and again after a while what did not go; until cancelled."""
    wait = FIRST_WAIT
    while True:
        if await deliver(world):
            wait = FIRST_WAIT
            await outbox.wait()
        else:
            await outbox.wait(wait)
            wait = min(wait * 2, LONGEST_WAIT)
