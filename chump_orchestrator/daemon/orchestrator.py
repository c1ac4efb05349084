"""The task tree, from the first signal to the last reflection."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import StopReason
from chump_orchestrator.daemon import delivery
from chump_orchestrator.daemon.bell import Bell
from chump_orchestrator.daemon.keeper import BacklogKeeper
from chump_orchestrator.daemon.lookout import Lookout
from chump_orchestrator.daemon.recovery import recover
from chump_orchestrator.daemon.roster import Assignment, Place
from chump_orchestrator.daemon.scheduler import Scheduler
from chump_orchestrator.daemon.supervisor import Supervisor

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from chump_orchestrator.core.ports import BacklogSource
    from chump_orchestrator.daemon.world import Policies, World

log = structlog.get_logger()

RENEWAL = timedelta(minutes=10)
"""How often the leases of living dispatches are renewed."""

LAST_LOOK = timedelta(seconds=5)
"""What a teardown leaves, after the last agent is gone, for the looks that settle them."""

LAST_LOOKS = timedelta(seconds=30)
"""The same for a drain, which nobody waits for with a stop watch."""

LAST_DELIVERY_S = 5.0


class Manner(StrEnum):
    """What to do with living agents when the daemon is told to end."""

    TEARDOWN = "teardown"
    DRAIN = "drain"
    DETACH = "detach"


class Orchestrator:
    """One daemon on one repository; `run` is its whole life."""

    def __init__(
        self,
        world: World,
        source: BacklogSource,
        assignment: Assignment,
        *,
        on_signal: Manner = Manner.TEARDOWN,
        reload: Callable[[], Awaitable[Policies]] | None = None,
        control: Callable[[Orchestrator], Coroutine[object, object, None]] | None = None,
    ) -> None:
        self.world = world
        self.since = world.clock.now()
        self.ending: Manner | None = None
        self.lookout = Lookout(world.pulls, world.clock, world.policies.deadlines.look_interval)
        self._outbox = Bell()
        self.keeper = BacklogKeeper(source, world.clock, self._wake)
        self.scheduler = Scheduler(world, self.lookout, self.keeper, self._outbox, assignment)
        self._on_signal = on_signal
        self._reload = reload
        self._control = control
        self._scope = anyio.CancelScope()
        self._signals = 0

    async def run(self) -> None:
        """Run until drained, torn down, detached, or until a limited run is over.

        `ConfigError` when there is no backlog to begin with. Cancelling detaches: agents live on
        under their shims, and the next daemon takes them up.
        """
        try:
            await self.keeper.first()
        except (Unavailable, Refused) as error:
            raise ConfigError(str(error)) from error
        taken_up = await recover(self.world)
        async with anyio.create_task_group() as services:
            services.start_soon(self._listen_to_signals)
            services.start_soon(self.lookout.run)
            services.start_soon(self.keeper.run)
            services.start_soon(delivery.run, self.world, self._outbox)
            services.start_soon(self._renew_leases)
            if self._control is not None:
                services.start_soon(self._control, self)
            log.info("daemon.started", pid=os.getpid(), taken_up=len(taken_up))
            with self._scope:
                async with anyio.create_task_group() as dispatches:
                    for taken in taken_up:
                        supervisor = Supervisor(
                            self.world,
                            self.lookout,
                            taken.record,
                            taken.agent,
                            self.scheduler.bell.ring,
                        )
                        self.scheduler.take_up(dispatches, taken.record, supervisor)
                    await self._work(dispatches)
            services.cancel_scope.cancel()
        with anyio.move_on_after(LAST_DELIVERY_S, shield=True):
            await delivery.deliver(self.world)
        log.info("daemon.stopped", manner=self.ending or "done")

    async def _work(self, dispatches: TaskGroup) -> None:
        scheduler = self.scheduler
        await scheduler.run(dispatches)
        if self.ending is None:
            return
        if self.ending is Manner.TEARDOWN:
            self._stop_all()
        await self._until(lambda: scheduler.running == 0)
        # Whatever waits for its open request is on record; the next start goes on with it.
        await self._until(
            lambda: not scheduler.tidying and all(map(_waits, scheduler.roster.values())),
            at_most=LAST_LOOK if self.ending is Manner.TEARDOWN else LAST_LOOKS,
        )
        self._scope.cancel()

    def _stop_all(self, *, now: bool = False) -> None:
        """Have every agent stopped at once, in parallel."""
        for place in self.scheduler.roster.values():
            if place.holds_slot:
                place.request_stop(StopReason.TEARDOWN, now=now)

    async def _until(self, claim: Callable[[], bool], at_most: timedelta | None = None) -> None:
        limit = None if at_most is None else at_most.total_seconds()
        with anyio.move_on_after(limit):
            while not claim():
                await self.scheduler.bell.wait()

    def end(self, manner: Manner) -> None:
        """Begin to end; a teardown outranks a drain that was begun before."""
        log.info("daemon.ending", manner=manner)
        if manner is Manner.DETACH:
            self._scope.cancel()
        elif manner is Manner.TEARDOWN and self.ending is Manner.DRAIN:
            self._stop_all()
        elif self.ending is not None:
            return
        self.ending = manner
        self.scheduler.draining = True
        self.scheduler.bell.ring()

    def kill(self) -> None:
        """End now: KILL to every agent, outcomes are still written."""
        log.warning("daemon.killing", agents=self.scheduler.running)
        self._stop_all(now=True)
        self.scheduler.bell.ring()

    async def reload(self) -> str:
        """Read settings and backlog anew; returns what was wrong, the last good ones are kept."""
        problems = []
        if self._reload is not None:
            try:
                self.world.policies = await self._reload()
            except ConfigError as error:
                log.warning("settings.kept", problem=str(error))
                problems.append(str(error))
        if problem := await self.keeper.reload():
            problems.append(problem)
        self.scheduler.bell.ring()
        return "\n".join(problems)

    def _wake(self) -> None:
        self.scheduler.bell.ring()

    @property
    def state(self) -> str:
        """`running`, `draining` or `stopping`."""
        if self.ending is None:
            return "running"
        return "draining" if self.ending is Manner.DRAIN else "stopping"

    async def _listen_to_signals(self) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with anyio.open_signal_receiver(*wanted) as received:
            async for number in received:
                await self._heed(number)

    async def _heed(self, number: signal.Signals) -> None:
        log.info("signal.received", signal=signal.Signals(number).name)
        if number == signal.SIGUSR1:
            self.end(Manner.DETACH)
        elif number == signal.SIGHUP and not _terminal_is_gone():
            await self.reload()
        else:
            self._signals += 1
            if self._signals > 1:
                self.end(Manner.TEARDOWN)
                self.kill()
            else:
                self.end(Manner.TEARDOWN if number != signal.SIGTERM else self._on_signal)

    async def _renew_leases(self) -> None:
        while True:
            await anyio.sleep(RENEWAL.total_seconds())
            for place in list(self.scheduler.roster.values()):
                try:
                    if place.dispatch:
                        await self.world.leases.renew(place.dispatch)
                except (Unavailable, Refused) as error:
                    log.warning("lease.unrenewed", dispatch=place.dispatch, error=str(error))

    def elapsed(self, since: datetime | None) -> float:
        """Seconds since an instant, not negative; 0 when there is none."""
        if since is None:
            return 0.0
        return max((self.world.clock.now() - since).total_seconds(), 0.0)


def _waits(place: Place) -> bool:
    """Whether only a pull request stands between this dispatch and its outcome."""
    return place.broken or (place.supervisor is not None and place.supervisor.has_open_pull)


def _terminal_is_gone() -> bool:
    """Whether this process had a controlling terminal that has hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return os.isatty(0) or os.isatty(2)
    return False
