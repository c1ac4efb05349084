"""Keeps what earlier dispatches taught of candidates up to date with the journal (behaviour G4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()


async def learn(world: World) -> None:
    """Read what the journal teaches now, where routing learns; forget it where it no longer does.

    A journal that does not answer leaves what was known. Cancelling does so, too.
    """
    if world.journal is None or not world.policies.routes.learns:
        world.experience = None
        return
    try:
        world.experience = await world.journal.experience(world.clock.now().date())
    except Unavailable as error:
        log.warning("journal.unavailable", error=str(error))
