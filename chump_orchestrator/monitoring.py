"""Has a daemon watched from outside: over HTTP where that is set, and in the shared stream."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread
import structlog

from chump_orchestrator import __version__
from chump_orchestrator.adapters.ambient import AmbientStream
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.records import Vitals
from chump_orchestrator.daemon.operations import Operator

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded
    from chump_orchestrator.daemon.orchestrator import Orchestrator
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LAST_LINES_S = 2.0
"""What the end of the daemon leaves for the last lines of the stream."""


@asynccontextmanager
async def in_the_stream(root: Path, loaded: Loaded, world: World) -> AsyncIterator[None]:
    """Have every change of state of `world` told in the shared stream (behaviour E1)."""
    stream = AmbientStream(
        root / loaded.settings.leases.dir,
        world.clock,
        session=f"chump-orchestrator-{os.getpid()}",
        worktree=root.name,
        hide=world.hide,
    )
    world.listeners.append(stream.hear)
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(stream.close, LAST_LINES_S)


def over_http(
    root: Path, loaded: Loaded
) -> tuple[Callable[[Orchestrator], Coroutine[object, object, None]], ...]:
    """Return what tells of a daemon over HTTP from its first moment on; nothing where it is off."""
    listen = loaded.settings.http.listen
    if not listen:
        return ()
    from chump_orchestrator.adapters import http  # noqa: PLC0415 - as slow as all the rest

    async def tell(daemon: Orchestrator) -> None:
        metrics = http.Metrics(__version__)
        daemon.world.listeners.append(metrics.hear)
        try:
            await http.serve(listen, root, _Daemon(daemon), metrics, daemon.world.clock)
        except Exception:
            log.exception("observer.failed")

    return (tell,)


class _Daemon:
    """What the pages ask of a daemon."""

    def __init__(self, daemon: Orchestrator) -> None:
        self._daemon = daemon
        self._operator = Operator(daemon)

    def why_not_ready(self) -> str:
        return self._operator.why_not_ready()

    async def vitals(self) -> Vitals:
        return await self._operator.vitals()

    async def state(self) -> Mapping[str, object]:
        if not self._daemon.is_ready:
            raise Unavailable(self.why_not_ready())
        return await self._operator.status()
