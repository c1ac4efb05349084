"""Serves the pages as long as the daemon runs, to few at a time and to none for long.

The server is a guest in the daemon's loop: signals stay the daemon's, a port that is taken is a
warning, and whoever connects gets one answer within a few seconds or none.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from chump_orchestrator.adapters.http.pages import Source, pages
from chump_orchestrator.adapters.http.sockets import UNIX, Door, opened

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp

    from chump_orchestrator.adapters.http.metrics import Metrics
    from chump_orchestrator.core.ports import Clock

log = structlog.get_logger()

MOST_CONNECTIONS = 16
"""Open at once; for a further one the oldest is closed."""

LIFE_S = 10.0
"""How long a connection lasts at most, from the first byte to the last."""

MOST_HEADER_BYTES = 8192
"""Of a request, its first line and headers together."""

FIRST_RETRY_S, LONGEST_RETRY_S = 1.0, 60.0
"""Between two attempts to listen at an address that is taken; doubles."""

METER_S = 1.0
"""Between two measurements of the event loop's delay."""

END_S = 1.0
"""What the daemon's end leaves for answers that are on their way."""


async def serve(listen: str, root: Path, source: Source, metrics: Metrics, clock: Clock) -> None:
    """Serve what `source` and `metrics` tell at `listen`, until cancelled.

    `listen` is `HOST:PORT` with an address of this machine's own, or `unix:PATH`, relative to
    `root`. An address that cannot be had is told once, and tried again until it can.
    """
    async with anyio.create_task_group() as group:
        group.start_soon(_measure, metrics)
        application = pages(source, metrics, clock, is_for_browsers=not listen.startswith(UNIX))
        await _at(await _door(listen, root), application)


async def _door(listen: str, root: Path) -> Door:
    wait_s, is_told = FIRST_RETRY_S, False
    while True:
        try:
            door = await anyio.to_thread.run_sync(opened, listen, root)
        except OSError as error:
            if not is_told:
                log.warning(
                    "http.unavailable",
                    listen=listen,
                    error=error.strerror or str(error),
                    remedy="end what listens there, or set http.listen to another address",
                )
            is_told = True
            await anyio.sleep(wait_s)
            wait_s = min(wait_s * 2, LONGEST_RETRY_S)
        else:
            log.info("http.listening", listen=listen, address=door.name)
            return door


async def _measure(metrics: Metrics) -> None:
    while True:
        due = anyio.current_time() + METER_S
        await anyio.sleep_until(due)
        metrics.lagged(anyio.current_time() - due)


async def _at(door: Door, application: ASGIApp) -> None:
    """Serve at a socket until cancelled; it is closed, and nothing of it left, afterwards."""
    crowd: dict[_Connection, None] = {}
    config = uvicorn.Config(
        application,
        http=cast("type[_Connection]", partial(_Connection, crowd=crowd)),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        workers=1,
        proxy_headers=False,
        forwarded_allow_ips=[],
        server_header=False,
        date_header=False,
        backlog=MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
    # What strangers send is no event of the daemon's, and bugs are told by the pages.
    told = logging.getLogger("uvicorn.error")
    told.propagate = False
    told.addHandler(logging.NullHandler())
    config.load()
    server = uvicorn.Server(config)
    # Its own `serve` takes over signals, and wakes ten times a second to look whether to end.
    server.lifespan = config.lifespan_class(config)
    try:
        await server.startup(sockets=[door.socket])
        await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(END_S, shield=True):
            for connection in tuple(crowd):
                connection.end()
            if server.started:
                await server.shutdown(sockets=[door.socket])
        door.close()


class _Connection(H11Protocol):
    """One connection, which ends after its time, or when it is the oldest of too many."""

    def __init__(self, *args: Any, crowd: dict[_Connection, None], **more: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*args, **more)
        self._crowd = crowd
        self._life: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._crowd[self] = None
        self._life = self.loop.call_later(LIFE_S, self.end)
        if len(self._crowd) > MOST_CONNECTIONS:
            next(iter(self._crowd)).end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.pop(self, None)
        if self._life is not None:
            self._life.cancel()
        super().connection_lost(exc)

    def end(self) -> None:
        """Close it, whatever is on its way."""
        self._crowd.pop(self, None)
        self.transport.abort()
