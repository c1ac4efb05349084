"""Keeps what earlier dispatches taught of candidates up to date with the journal (behaviour G4)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.errors import Unavailable

if TYPE_CHECKING:
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

OFTEN = timedelta(seconds=30)
"""A year of rows takes 0.2 s of CPU for every 100,000 (measured): many ends share a reading."""


async def learn(world: World, *, at_most: timedelta = timedelta(0)) -> None:
    """Read what the journal teaches now, where routing learns; forget it where it no longer does.

    What was read less than `at_most` ago is left as it is. So it is by a journal that does not
    answer, and by cancelling.
    """
    if world.journal is None or not world.policies.routes.learns:
        world.experience = None
        return
    now = world.clock.now()
    if world.learnt_at is not None and timedelta(0) <= now - world.learnt_at < at_most:
        return
    try:
        world.experience = await world.journal.experience(now.date())
        world.learnt_at = now
    except Unavailable as error:
        log.warning("journal.unavailable", error=str(error))
