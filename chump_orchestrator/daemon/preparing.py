"""Has worktrees made ahead of time for the gaps that wait for a slot, whenever nothing is begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.daemon.bell import Bell

if TYPE_CHECKING:
    from chump_orchestrator.daemon.orchestrator import Orchestrator

log = structlog.get_logger()

LAST_REMOVAL_S = 10.0
"""At the end, for letting go of those that nobody needed; what is left goes at the next start."""


async def run(daemon: Orchestrator) -> None:
    """Keep as many as the settings say, and no more than gaps wait, until cancelled; then none.

    Where that cannot be had nobody suffers: a dispatch has its worktree made when it begins.
    """
    bell = Bell()

    def hear(_event: str, _fields: Mapping[str, object]) -> None:
        bell.ring()

    world = daemon.world
    world.listeners.append(hear)
    has_any = False
    try:
        while True:
            wanted = _wanted(daemon)
            if wanted is not None and (wanted or has_any):
                has_any = wanted > 0
                await _prepare(daemon, wanted)
            await bell.wait()
    finally:
        world.listeners.remove(hear)
        if has_any:
            with anyio.move_on_after(LAST_REMOVAL_S, shield=True):
                await _prepare(daemon, 0)


async def _prepare(daemon: Orchestrator, wanted: int) -> None:
    try:
        await daemon.world.worktrees.prepare(wanted)
    except (Unavailable, Refused) as error:
        log.warning("worktrees.unprepared", base="", why=str(error))


def _wanted(daemon: Orchestrator) -> int | None:
    """How many there should be; `None` for as many as there are.

    Those there are stay while a dispatch is being begun, which may be about to take one, and
    while nobody waits: the next who does will be glad of it.
    """
    scheduler, at_most = daemon.scheduler, daemon.world.policies.prepared
    if at_most == 0:
        return 0
    if not daemon.is_ready or any(place.is_beginning for place in scheduler.roster.values()):
        return None
    return scheduler.choice.waits(at_most) or None
