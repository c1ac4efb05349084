"""The task tree, from the first signal to the last reflection."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.outcome import Outcome, StopReason
from chump_orchestrator.daemon import delivery, housekeeping
from chump_orchestrator.daemon.bell import Bell
from chump_orchestrator.daemon.correcting import Corrector
from chump_orchestrator.daemon.keeper import BacklogKeeper
from chump_orchestrator.daemon.learning import learn
from chump_orchestrator.daemon.lookout import Lookout
from chump_orchestrator.daemon.recovery import TakenUp, recover
from chump_orchestrator.daemon.roster import Assignment, Place
from chump_orchestrator.daemon.scheduler import Scheduler
from chump_orchestrator.daemon.watchdog import Watchdog

if TYPE_CHECKING:
    from anyio.abc import TaskGroup, TaskStatus

    from chump_orchestrator.core.ports import BacklogSource
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LAST_LOOK = timedelta(seconds=5)
"""What a teardown leaves, after the last agent is gone, for the looks that settle them."""

LAST_LOOKS = timedelta(seconds=30)
"""The same for a drain, which nobody waits for with a stop watch."""

AFTER_KILL = timedelta(seconds=1)
"""The same once somebody has asked twice."""

LAST_DELIVERY_S = 5.0

FIRST_WORD = timedelta(seconds=25)
"""How long a single run waits for what came of requests that earlier runs had given up."""


class Manner(StrEnum):
    """What to do with living agents when the daemon is told to end."""

    TEARDOWN = "teardown"
    DRAIN = "drain"
    DETACH = "detach"


class Orchestrator:
    """One daemon on one repository; `run` is its whole life.

    `reload` reads the settings again, puts what came of them into the world, and returns what it
    could not change in a running daemon; `ConfigError` keeps what was. `control` is called with
    this object and `task_status`; it serves operators, and says there when it does.
    `trusts_backlog` is for one that comes from commits, which are never torn. `beside` is run from
    the first moment on, with this object, to tell of it; it has to keep its failures to itself.
    """

    def __init__(
        self,
        world: World,
        source: BacklogSource,
        assignment: Assignment,
        *,
        on_signal: Manner = Manner.TEARDOWN,
        reload: Callable[[World], Awaitable[str]] | None = None,
        control: Callable[..., Coroutine[object, object, None]] | None = None,
        trusts_backlog: bool = False,
        beside: Sequence[Callable[[Orchestrator], Coroutine[object, object, None]]] = (),
    ) -> None:
        self.world = world
        self.since = world.clock.now()
        self.ending: Manner | None = None
        interval = world.policies.deadlines.look_interval
        self._corrector = Corrector(
            world,
            backlog=lambda: self.keeper.backlog,
            shipped=self._was_shipped,
            wake=self._wake_lookout,
        )
        self.lookout = Lookout(world.pulls, world.clock, interval, world.tell, self._corrector)
        self._outbox = Bell()
        self.keeper = BacklogKeeper(
            source, world.clock, self._wake, world.tell, is_trusted=trusts_backlog
        )
        self.scheduler = Scheduler(world, self.lookout, self.keeper, self._outbox, assignment)
        self._assignment = assignment
        self._on_signal = on_signal
        self._reload = reload
        self._control = control
        self._beside = beside
        self.is_ready = False
        self._scope = anyio.CancelScope()
        self._signals = 0
        self._had_terminal = _has_terminal()
        self.interrupted = False
        self.reload_problem = ""
        self._reloading = anyio.Lock()
        self._last_looks = anyio.CancelScope()
        self._are_last_looks = False
        self._watchdog = Watchdog(self)

    async def run(self) -> None:
        """Run until drained, torn down, detached, or until a limited run is over.

        `ConfigError` when there is no backlog to begin with. Cancelling detaches: agents live on
        under their shims, and the next daemon takes them up.
        """
        refused: Exception | None = None
        async with anyio.create_task_group() as services:
            await services.start(self._listen_to_signals)
            services.start_soon(self._watchdog.run)
            for work in self._beside:
                services.start_soon(work, self)
            try:
                taken_up = await self._begin()
            except (ConfigError, Unavailable, Refused) as error:
                refused = error
                self._watchdog.failed(str(error))
            else:
                await self._serve(services, taken_up)
                self._watchdog.stopping()
            services.cancel_scope.cancel()
        if refused is not None:
            raise refused
        with anyio.move_on_after(LAST_DELIVERY_S, shield=True):
            await delivery.deliver(self.world)
        log.info("daemon.stopped", manner=self.ending or "done")
        self.world.tell("daemon.stopped", manner=str(self.ending or "done"))

    async def _begin(self) -> tuple[TakenUp, ...]:
        """Read what there is to go on with; `ConfigError` for what an operator must change."""
        try:
            await self.keeper.first()
        except (Unavailable, Refused) as error:
            raise ConfigError(str(error)) from error
        for gap in sorted(self._assignment.gaps):
            if self.keeper.backlog.find(gap) is None:
                msg = f"--gap {gap}: the backlog has no gap of this id; see plan --explain"
                raise ConfigError(msg)
        await self.world.pulls.check()
        if self.world.ships and self.world.shipper is not None:
            await self.world.shipper.check()
        taken_up = await recover(self.world)
        await self.scheduler.brakes.load()
        await self.scheduler.admission.load()
        return taken_up

    async def _serve(self, services: TaskGroup, taken_up: tuple[TakenUp, ...]) -> None:
        """Dispatch until told to end, with everything that does so in the background."""
        self.world.listeners.append(self._corrector.hear)
        services.start_soon(self._corrector.run)
        services.start_soon(self.lookout.run)
        services.start_soon(self.keeper.run)
        services.start_soon(delivery.run, self.world, self._outbox)
        services.start_soon(housekeeping.run, self.world)
        if self._control is not None:
            await services.start(self._control, self)
        self.is_ready = True
        log.info("daemon.started", pid=os.getpid(), taken_up=len(taken_up))
        self.world.tell("daemon.started", pid=os.getpid(), taken_up=len(taken_up))
        self._watchdog.ready()
        if self._assignment.once:
            # A run that may have nothing else to wait for hears of late merges before it chooses.
            await self._corrector.first_word(FIRST_WORD)
        with self._scope:
            async with anyio.create_task_group() as dispatches:
                for taken in taken_up:
                    self.scheduler.take_up(dispatches, taken)
                services.start_soon(self._renew_leases)
                await self._work(dispatches)

    async def _work(self, dispatches: TaskGroup) -> None:
        scheduler = self.scheduler
        await scheduler.run(dispatches)
        if self.ending is None:
            if any(not place.broken for place in scheduler.roster.values()):
                # Requests that this run waits for no longer; the next start goes on with them.
                self._scope.cancel()
            return
        if self.ending is Manner.TEARDOWN:
            self._stop_all()
        await self._until(lambda: scheduler.running == 0)
        # Whatever waits for its open request is on record; the next start goes on with it.
        with self._last_looks:
            self._are_last_looks = True
            self._hurry_last_looks(LAST_LOOK if self.ending is Manner.TEARDOWN else LAST_LOOKS)
            await self._until(lambda: all(map(_waits, scheduler.roster.values())))
        self._scope.cancel()

    def _hurry_last_looks(self, at_most: timedelta) -> None:
        """Have the last looks at requests, once they have begun, end so soon if not sooner."""
        if not self._are_last_looks:
            return
        deadline_s = anyio.current_time() + at_most.total_seconds()
        self._last_looks.deadline = min(self._last_looks.deadline, deadline_s)

    def _stop_all(self, *, now: bool = False) -> None:
        """Have every agent stopped at once, in parallel."""
        for place in self.scheduler.roster.values():
            if place.holds_slot:
                place.request_stop(StopReason.TEARDOWN, now=now)

    async def _until(self, claim: Callable[[], bool]) -> None:
        while not claim():
            await self.scheduler.bell.wait()

    def end(self, manner: Manner) -> None:
        """Begin to end; a teardown outranks a drain that was begun before."""
        if manner is self.ending:
            return
        if manner is Manner.DETACH:
            self._scope.cancel()
            self._corrector.hush()
        elif manner is Manner.TEARDOWN and self.ending is Manner.DRAIN:
            self._stop_all()
            self._hurry_last_looks(LAST_LOOK)
        elif self.ending is not None:
            return
        log.info("daemon.ending", manner=manner)
        self.world.tell("daemon.ending", manner=str(manner))
        self.ending = manner
        self._corrector.hush()
        self._watchdog.ending()
        self.scheduler.draining = True
        self.scheduler.bell.ring()

    def kill(self) -> None:
        """End now: KILL to every agent, outcomes are still written."""
        log.warning("daemon.killing", agents=self.scheduler.running)
        self._stop_all(now=True)
        self._hurry_last_looks(AFTER_KILL)
        self.scheduler.bell.ring()

    async def reload(self) -> str:
        """Read settings and backlog anew; returns what of it does not hold now, and why.

        What is wrong is not taken over: the last good settings and backlog stay in use, and
        `reload_problem` says why until a reload goes well.
        """
        async with self._reloading:
            with self._watchdog.reloading():
                late, wrong = await self._read_anew()
                self.reload_problem = "\n".join(wrong.values())
        if not wrong:
            log.info("daemon.reloaded", late=late)
        self.scheduler.bell.ring()
        return "\n".join(filter(None, (late, *(f"{kept}: {why}" for kept, why in wrong.items()))))

    async def _read_anew(self) -> tuple[str, dict[str, str]]:
        """Return what takes effect at the next start only, and what was kept instead, and why."""
        late, wrong = "", {}
        if self._reload is not None:
            try:
                late = await self._reload(self.world)
            except (ConfigError, Unavailable, Refused) as error:
                log.warning("settings.kept", problem=str(error))
                wrong["kept what was loaded before"] = str(error)
            self.lookout.set_interval(self.world.policies.deadlines.look_interval)
        await learn(self.world)
        if problem := await self.keeper.reload():
            wrong["kept the backlog as last read"] = problem
        return late, wrong

    def _was_shipped(self, gap: str, outcome: Outcome) -> None:
        """Go on with a gap that counts as shipped after all, and with those that wait for it."""
        scheduler = self.scheduler
        scheduler.shipped_at = self.world.clock.now()
        scheduler.admission.freed(gap)
        if gap in scheduler.last:
            scheduler.last[gap] = outcome
        self._outbox.ring()
        scheduler.bell.ring()

    def _wake_lookout(self) -> None:
        self.lookout.wake()

    def _wake(self) -> None:
        self.scheduler.bell.ring()

    @property
    def state(self) -> str:
        """`running`, `draining` or `stopping`."""
        if self.ending is None:
            return "running"
        return "draining" if self.ending is Manner.DRAIN else "stopping"

    async def _listen_to_signals(
        self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        async with anyio.create_task_group() as group:
            with anyio.open_signal_receiver(*wanted) as received:
                task_status.started()
                async for number in received:
                    self._heed(number, group)

    def _heed(self, number: signal.Signals, group: TaskGroup) -> None:
        log.info("signal.received", signal=signal.Signals(number).name)
        if number == signal.SIGUSR1:
            self.end(Manner.DETACH)
        elif number == signal.SIGHUP and not (self._had_terminal and not _has_terminal()):
            group.start_soon(self.reload)
        else:
            self._signals += 1
            if self._signals > 1:
                self.end(Manner.TEARDOWN)
                self.kill()
            else:
                self.interrupted = number == signal.SIGINT
                self.end(Manner.TEARDOWN if number != signal.SIGTERM else self._on_signal)

    async def _renew_leases(self) -> None:
        while True:
            for place in list(self.scheduler.roster.values()):
                try:
                    if place.dispatch:
                        await self.world.leases.renew(place.dispatch)
                except (Unavailable, Refused) as error:
                    log.warning("lease.unrenewed", dispatch=place.dispatch, error=str(error))
            await anyio.sleep(self.world.policies.renewal.total_seconds())


def _waits(place: Place) -> bool:
    """Whether only a pull request stands between this dispatch and its outcome.

    One that was seen before its agent ended may have been merged by that since.
    """
    supervisor = place.supervisor
    if place.broken or supervisor is None:
        return place.broken
    return supervisor.has_open_pull and supervisor.has_looked and supervisor.is_on_record


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal; one that hung up is none any more."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
