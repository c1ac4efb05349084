"""What every task of the daemon works with: the ports, the policies, and the way to tell."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import structlog

from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.dispatch import DeadlinePolicy
from chump_orchestrator.core.picker import PickPolicy
from chump_orchestrator.core.routing import RoutePolicy

if TYPE_CHECKING:
    from chump_orchestrator.core.gap import Gap
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

log = structlog.get_logger()

Listener = Callable[[str, Mapping[str, object]], None]
"""Told of every event by its name and fields; must return at once."""


@dataclass(frozen=True, slots=True)
class Policies:
    """What the operator decided; swapped whole when settings are loaded again."""

    pick: PickPolicy
    routes: RoutePolicy
    deadlines: DeadlinePolicy
    retry: RetryPolicy
    max_parallel: int = 2
    max_open_pulls: int = 10
    repeat: timedelta = timedelta(hours=24)
    lessons: bool = True


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
    listeners: list[Listener] = field(default_factory=list)

    def tell(self, event: str, **fields: object) -> None:
        """Pass an event on to whoever listens, such as a terminal; logging is the caller's."""
        for listener in self.listeners:
            listener(event, fields)
