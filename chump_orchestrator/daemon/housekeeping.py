"""What nobody waits for: old logs and salvaged worktrees go, and git packs what has gathered."""

from __future__ import annotations

from collections.abc import Mapping
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

DISPATCHES = 20
"""After so many git is asked anew whether much has gathered: it answers within 10 ms, waits for
6,700 objects unless told otherwise, and a dispatch leaves a dozen at least."""


async def run(world: World) -> None:
    """Clean up every day, and have git pack as dispatches end, until cancelled."""
    upkeep = _Upkeep(world)
    world.listeners.append(upkeep.hear)
    await anyio.sleep(FIRST.total_seconds())
    async with anyio.create_task_group() as group:
        group.start_soon(upkeep.run)
        while True:
            await clean(world)
            await anyio.sleep(AGAIN.total_seconds())


class _Upkeep:
    """Has git look after its repository, at first and after every so many dispatches."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._settled = 0
        self._is_due = anyio.Event()

    def hear(self, event: str, _fields: Mapping[str, object]) -> None:
        if event == "dispatch.settled":
            self._settled += 1
            if self._settled >= DISPATCHES:
                self._is_due.set()

    async def run(self) -> None:
        while True:
            self._settled, self._is_due = 0, anyio.Event()
            try:
                await self._world.worktrees.maintain()
            except (Unavailable, Refused) as error:
                log.warning("repository.unpacked", error=str(error))
            await self._is_due.wait()


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
