"""Keeps the machine from going to sleep by itself while agents run, and no longer than that."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.daemon.bell import Bell

if TYPE_CHECKING:
    from chump_orchestrator.core.machine import Wakefulness
    from chump_orchestrator.daemon.orchestrator import Orchestrator

log = structlog.get_logger()

LOOK_AGAIN = timedelta(seconds=30)
"""How often it is seen whether what keeps the machine awake is still there."""

LAST_RELEASE_S = 10.0


async def run(daemon: Orchestrator, wakefulness: Wakefulness) -> None:
    """Hold the machine awake while a slot is held and settings say so, until cancelled.

    Where that cannot be had nobody suffers: it is told once for each time, and not tried again
    before the last agent has ended and another begins.
    """
    bell = Bell()

    def hear(_event: str, _fields: Mapping[str, object]) -> None:
        bell.ring()

    daemon.world.listeners.append(hear)
    is_held = is_given_up = False
    try:
        while True:
            agents = daemon.scheduler.running
            is_wanted = daemon.world.policies.keep_awake and agents > 0
            if not is_wanted:
                if is_held:
                    await wakefulness.release()
                    log.debug("machine.released")
                is_held = is_given_up = False
            elif not is_given_up:
                try:
                    await wakefulness.hold("coding agents are at work")
                except (Unavailable, Refused) as error:
                    is_held, is_given_up = False, True
                    log.debug("machine.may_sleep", why=str(error))
                else:
                    if not is_held:
                        log.debug("machine.kept_awake", agents=agents)
                    is_held = True
            await bell.wait(LOOK_AGAIN if agents else None)
    finally:
        daemon.world.listeners.remove(hear)
        with anyio.move_on_after(LAST_RELEASE_S, shield=True):
            await wakefulness.release()
