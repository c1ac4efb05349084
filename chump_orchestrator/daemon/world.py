"""What every task of the daemon works with: the ports, the policies, and the way to tell."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.budget import BudgetPolicy
from chump_orchestrator.core.dispatch import DeadlinePolicy, Limits
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.picker import PickPolicy
from chump_orchestrator.core.routing import RoutePolicy
from chump_orchestrator.core.turns import LoopTurns

if TYPE_CHECKING:
    from chump_orchestrator.core.dispatch import Workspace
    from chump_orchestrator.core.gap import Gap
    from chump_orchestrator.core.learning import Experience
    from chump_orchestrator.core.machine import ServiceManager
    from chump_orchestrator.core.ports import (
        Backend,
        Clock,
        Executor,
        Journal,
        Leases,
        Ledger,
        Prompts,
        Pulls,
        Worktrees,
    )
    from chump_orchestrator.core.records import Record
    from chump_orchestrator.core.shipping import Shipper

log = structlog.get_logger()

STORE_AGAIN_S = 1.0
"""Between two attempts to write a record down."""

Listener = Callable[[str, Mapping[str, object]], None]
"""Told of every event by its name and fields; must return at once."""


@dataclass(frozen=True, slots=True)
class Policies:
    """What the operator decided; swapped whole when settings are loaded again.

    `limits` are those of each agent, and `keep_awake` says whether the machine is kept from going
    to sleep while one runs. `prepared` is how many worktrees are made ahead of time, and
    `resumes_failed` says whether the daemon goes on by itself with a request that failed.
    `keep_logs` is how long what a settled dispatch has left on disk is kept; `renewal` how often
    the leases of living dispatches are renewed.
    """

    pick: PickPolicy
    routes: RoutePolicy
    deadlines: DeadlinePolicy
    retry: RetryPolicy
    budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    max_parallel: int = 2
    max_open_pulls: int = 10
    repeat: timedelta = timedelta(hours=24)
    lessons: bool = True
    limits: Limits = field(default_factory=Limits)
    keep_awake: bool = True
    prepared: int = 2
    resumes_failed: bool = False
    keep_logs: timedelta = timedelta(days=30)
    renewal: timedelta = timedelta(minutes=10)


@dataclass(slots=True)
class World:
    """The ports and policies; one object, made by the composition root."""

    clock: Clock
    ledger: Ledger
    journal: Journal | None
    worktrees: Worktrees
    leases: Leases
    executor: Executor
    pulls: Pulls
    prompts: Prompts
    backend: Callable[[str], Backend]
    policies: Policies
    chance: random.Random
    lessons: Callable[[Gap], Awaitable[tuple[str, ...]]] | None = None
    has_pushed: Callable[[Workspace, str], Awaitable[bool]] | None = None
    """Says whether a commit of a dispatch, by its id, has left this machine; `None` cannot be."""
    listeners: list[Listener] = field(default_factory=list)
    unstored: int = 0
    """Records that wait for the ledger to take them."""
    hide: Callable[[str], str] = str
    """Takes secrets out of a text that is to be kept; what a program said may quote one (I7)."""
    manager: ServiceManager | None = None
    """Who is told how the daemon fares; `None` when nobody asked for that."""
    zone: Callable[[str], tzinfo | None] = lambda name: None if name else UTC
    """Gives a time zone by its name, `None` for one that there is not; without a name, the zone
    of the machine that agents run on."""
    shipper: Shipper | None = None
    """Who ships what agents have committed; `None` where nobody can be asked to."""
    ships: bool = False
    """Whether agents that are started now have the daemon ship for them (behaviour P9)."""
    experience: Experience | None = None
    """What earlier dispatches taught of candidates; `None` where nothing is learnt (G4)."""
    learnt_at: datetime | None = None
    """When that was read."""

    turns: LoopTurns = field(default_factory=LoopTurns)
    """How long the turns of the loop take, where somebody counts them."""

    def tell(self, event: str, **fields: object) -> None:
        """Pass an event on to whoever listens, such as a terminal; logging is the caller's.

        A listener that fails is told nothing more: no dispatch suffers from who watches it.
        """
        for listener in tuple(self.listeners):
            try:
                listener(event, fields)
            except Exception:
                self.listeners.remove(listener)
                log.exception("listener.dropped", during=event)

    async def store(self, record: Record) -> None:
        """Write a record down; a ledger that does not answer delays it. Cancelling gives it up."""
        with self.storing():
            while True:
                try:
                    await self.ledger.update(record.dispatch.id, record)
                except Unavailable as error:
                    log.warning("ledger.unavailable", error=str(error))
                    await anyio.sleep(STORE_AGAIN_S)
                else:
                    return

    @contextlib.contextmanager
    def storing(self) -> Iterator[None]:
        """Count a record among those that the ledger does not have yet."""
        self.unstored += 1
        try:
            yield
        finally:
            self.unstored -= 1
