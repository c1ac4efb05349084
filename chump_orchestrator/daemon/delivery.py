"""Takes reflections from the outbox to the journal; late if need be, never twice, never lost.

What a later merge has made of them follows from an outbox of its own.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.daemon.learning import OFTEN, learn

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Journal
    from chump_orchestrator.core.reflection import Reflection
    from chump_orchestrator.daemon.bell import Bell
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

FIRST_WAIT = timedelta(seconds=2)
LONGEST_WAIT = timedelta(minutes=2)
"""Between two attempts at a journal that cannot be written; doubles."""


async def deliver(world: World) -> bool:
    """Deliver what is in the outbox; say whether there is nothing left to do.

    Without a journal it stays for the next run that has one.
    """
    if world.journal is None:
        return True
    try:
        for reflection in await world.ledger.outbox():
            await _deliver_one(world, world.journal, reflection)
        for reflection in await world.ledger.corrections():
            await _correct_one(world, world.journal, reflection)
    except (Unavailable, Refused) as error:
        log.warning("journal.unavailable", error=str(error))
        return False
    return True


async def _deliver_one(world: World, journal: Journal, reflection: Reflection) -> None:
    try:
        await journal.record(reflection)
    except (Unavailable, Refused):
        raise
    except Exception:
        # It stays in the outbox; the others are not to wait for somebody to mend the bug.
        log.exception("reflection.undeliverable", dispatch=reflection.dispatch)
        return
    await world.ledger.delivered(reflection.dispatch)


async def _correct_one(world: World, journal: Journal, reflection: Reflection) -> None:
    try:
        await journal.correct(reflection)
    except (Unavailable, Refused):
        raise
    except Exception:
        log.exception("reflection.undeliverable", dispatch=reflection.dispatch)
        return
    await world.ledger.correction_delivered(reflection.dispatch)


async def run(world: World, outbox: Bell) -> None:
    """Deliver whenever the bell rings, and again after a while what did not go; until cancelled.

    What was delivered is learnt from.
    """
    wait = FIRST_WAIT
    while True:
        if await deliver(world):
            wait = FIRST_WAIT
            await learn(world, at_most=OFTEN)
            await outbox.wait()
        else:
            await outbox.wait(wait)
            wait = min(wait * 2, LONGEST_WAIT)
