"""One dispatch, from launch to outcome to reflection: observe, judge, act, write down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import anyio
import structlog

from chump_orchestrator.core.brakes import is_accepted
from chump_orchestrator.core.corrections import watch_of
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.outcome import (
    STOPPED_BY_OPERATOR,
    Exit,
    Observation,
    Outcome,
    OutcomeKind,
    PullRequest,
    PullState,
    Settle,
    Stop,
    StopReason,
    Wait,
    judge,
)
from chump_orchestrator.core.records import DispatchState, Record, with_sighting
from chump_orchestrator.core.testimony import Report
from chump_orchestrator.daemon.bell import Bell
from chump_orchestrator.daemon.follow_up import FollowUp
from chump_orchestrator.daemon.hearing import ASK_AGAIN, Hearing, followed
from chump_orchestrator.daemon.lookout import Lookout, Sighting
from chump_orchestrator.daemon.shipping import is_due, ship

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.daemon.world import World

log = structlog.get_logger()

LAST_CHANCE = timedelta(seconds=30)
"""How long the forge may take to say that a dispatch shipped before an operator stopped it."""


class Supervisor:
    """Keeps watch over one agent until its dispatch has an outcome.

    The scheduler owns it and reads `record` and `is_running`; it rings `bell` when something was
    asked of it, and is told by `on_change` when the slot comes free or news of the request come.
    Cancelling `watch` lets go of the agent, which lives on.
    """

    def __init__(
        self,
        world: World,
        lookout: Lookout,
        record: Record,
        agent: Agent | None,
        on_change: Callable[[], None],
    ) -> None:
        self.record = record
        self.agent = agent
        self.bell = Bell()
        self.overdue = self.silent = False
        self.stop_asked: StopReason | None = None
        self.kill_asked = False
        self.given_up = False
        self.accepted_usd: float | None = None
        """What its agent had told to have spent when its last progress was accepted (X2)."""
        self.follow_up = FollowUp(world)
        self._world = world
        self._lookout = lookout
        self._on_change = on_change
        self._hearing: Hearing | None = None
        self._exit = record.exit
        now_s = world.clock.monotonic()
        self._exit_s = now_s - self._ago(record.exited_at) if record.exited_at else now_s
        self._pull = record.pull
        self._pull_s = now_s - self._ago(record.pull_since)
        self._checks_s = now_s - self._ago(at) if (at := record.checks_failed_since) else None
        self._began_s = now_s
        self._seen_s: float | None = None
        self._quiet: list[float] = []
        self._hard = record.dispatch.deadlines.hard
        self._told_stop: tuple[StopReason, bool] | None = None
        self._storing = 0
        self._shipping = anyio.CancelScope()

    @property
    def is_running(self) -> bool:
        """Whether its agent holds a slot; one that ended while nobody looked does not."""
        return self._exit is None and (self.agent is None or self.agent.exit is None)

    @property
    def report(self) -> Report:
        """What its agent has told of itself so far."""
        return self.record.report if self._hearing is None else self._hearing.report

    @property
    def has_open_pull(self) -> bool:
        """Whether a request of its is open."""
        return self._pull is not None and self._pull.state is PullState.OPEN

    @property
    def is_on_record(self) -> bool:
        """Whether the end of its agent is written down, as far as it has ended."""
        return self._exit is None or (self.record.exit is not None and not self._storing)

    def waiting_s(self) -> float | None:
        """For how many seconds its open request is all that has been waited for, or `None`."""
        if self._exit is None or not self.has_open_pull:
            return None
        since_s = max(self._pull_s, self._exit_s, self._began_s)
        return self._world.clock.monotonic() - since_s

    @property
    def pull(self) -> PullRequest | None:
        """What was last seen of its request."""
        return self._pull

    @property
    def exit(self) -> Exit | None:
        """How its agent ended."""
        return self._exit

    def request_stop(self, reason: StopReason, *, now: bool = False) -> None:
        """Ask for the agent to be stopped; with `now` by KILL, also while it is being stopped.

        Of an agent that has ended, an operator gives up what is still waited for.
        """
        self.given_up = self.given_up or (self._exit is not None and reason is StopReason.OPERATOR)
        self.stop_asked = self.stop_asked or reason
        self.kill_asked = self.kill_asked or now
        if self.given_up:
            self._shipping.cancel()
        self.bell.ring()

    def active(self) -> timedelta:
        """Active time of the agent."""
        if self.agent is not None:
            return self.agent.active()
        return self._exit.active if self._exit is not None else timedelta(0)

    def quiet(self) -> timedelta:
        """Time since the agent last got on, as far as its output tells."""
        if self.agent is None:
            return timedelta(0)
        return self.agent.silent() if self._hearing is None else self._hearing.quiet()

    async def watch(self) -> Outcome:
        """Watch until there is an outcome, and return it; nothing is settled yet."""
        asked = watch_of(self.record)
        branch = asked.branch if asked else self.record.dispatch.names.branch
        if asked is not None:
            self._lookout.watch(asked, self.bell.ring)
        try:
            async with anyio.create_task_group() as group:
                if self._exit is None and self.agent is not None:
                    group.start_soon(self._follow, self.agent)
                outcome = await self._until_settled(branch)
                group.cancel_scope.cancel()
            return outcome
        finally:
            self._lookout.forget(branch)

    async def mind(self) -> None:
        """See to it that the agent can be stopped and its slot comes free; settle nothing.

        For a dispatch that ended in a bug. Cancelling lets go of the agent, which lives on.
        """
        agent = self.agent
        if agent is None or self._exit is not None:
            return
        async with anyio.create_task_group() as group:
            group.start_soon(self._obey)
            self._exit = await followed(agent, lambda _: None)
            group.cancel_scope.cancel()
        self._on_change()

    async def _obey(self) -> None:
        while True:
            if self.stop_asked is not None:
                await self._stop(self.stop_asked)
            await self.bell.wait()

    async def _until_settled(self, branch: str) -> Outcome:
        deadlines = self.record.dispatch.deadlines
        while True:
            await self._note_session()
            await self._note_sighting(self._lookout.sighting(branch))
            is_merged = self._pull is not None and self._pull.state is PullState.MERGED
            has_work = is_due(self.record, self._exit)
            # Its agent was quicker than the operator, whose word counts all the same.
            self.given_up |= has_work and self.stop_asked is StopReason.OPERATOR
            if self._is_given_up and not is_merged:
                return Outcome(OutcomeKind.CANCELLED, STOPPED_BY_OPERATOR)
            if has_work and not self.given_up:
                if not self.is_on_record:
                    await self.bell.wait(ASK_AGAIN)
                elif ended := await self._ship():
                    return ended
                continue
            if self.has_looked and self._pull is not None and self.has_open_pull:
                asked = (self.record, self._pull, self._store, self._on_change)
                if went_over := await self.follow_up.attend(*asked):
                    return went_over
            verdict = judge(self._observe(), deadlines)
            if isinstance(verdict, Stop) and self.stop_asked is None and self.agent is not None:
                # Our clock went on while all stood still; the shim's count leaves that out.
                await self.agent.recount()
                verdict = judge(self._observe(), deadlines)
            match verdict:
                case Settle(outcome):
                    return outcome
                case Stop(reason):
                    await self._stop(reason)
                    await self.bell.wait(deadlines.grace + ASK_AGAIN)
                case Wait() as wait:
                    await self._act(wait)
                    await self.bell.wait(self._next(wait.recheck))

    async def _ship(self) -> Outcome | None:
        """Ship what the agent has committed; what the forge says from then on is news (P9)."""
        with self._shipping:
            ended = await ship(self._world, self.record, self._store)
            self._exit_s, self._quiet = self._world.clock.monotonic(), []
            self._lookout.ask()
            return ended
        return None

    @property
    def _is_given_up(self) -> bool:
        """Whether nobody waits any more for what comes of an agent that has ended.

        The forge is asked once more before that is said, if it answers within `LAST_CHANCE`.
        """
        if self._exit is None or not self.given_up:
            return False
        waited_s = self._world.clock.monotonic() - max(self._exit_s, self._began_s)
        return self.has_looked or waited_s >= LAST_CHANCE.total_seconds()

    @property
    def has_looked(self) -> bool:
        """Whether its agent has ended, and the forge answered a question put since then."""
        return self._exit is not None and self._seen_s is not None and self._seen_s >= self._exit_s

    def _observe(self) -> Observation:
        now_s, quiet = self._world.clock.monotonic(), self._quiet
        return Observation(
            active=self.active(),
            exit=self._exit,
            since_exit=_span(now_s - self._exit_s) if self._exit is not None else timedelta(0),
            pull=self._pull,
            looked=None if self._seen_s is None else _span(now_s - self._seen_s),
            pull_opened=_span(now_s - self._pull_s),
            pull_seen_active=self.record.pull_since_active,
            checks_failed=None if self._checks_s is None else _span(now_s - self._checks_s),
            quiet_looks=len(quiet),
            quiet_span=_span(quiet[-1] - quiet[0]) if quiet else timedelta(0),
            watched=_span(now_s - self._began_s),
            stop_asked=self.stop_asked,
        )

    def _next(self, recheck: timedelta | None) -> timedelta | None:
        if self._exit is not None and self.given_up:
            return LAST_CHANCE if recheck is None else min(recheck, LAST_CHANCE)
        if self._exit is not None or self.agent is None or self.silent:
            return recheck
        quiet = self.record.dispatch.deadlines.silent - self.quiet()
        return quiet if recheck is None else min(recheck, max(quiet, timedelta(0)))

    async def _act(self, verdict: Wait) -> None:
        if verdict.look:
            self._lookout.ask()
        if verdict.overdue and not self.overdue:
            self.overdue = True
            log.warning("dispatch.overdue", active_s=round(self.active().total_seconds()))
            self._tell("dispatch.overdue")
        if self.agent is None or self._exit is not None:
            return
        if verdict.hard is not None and verdict.hard != self._hard:
            try:
                await self.agent.extend(verdict.hard)
                self._hard = verdict.hard
            except (Unavailable, Refused) as error:
                log.warning("agent.unreachable", error=str(error))
        is_silent = self.quiet() >= self.record.dispatch.deadlines.silent
        if is_silent and not self.silent:
            silent_s = round(self.quiet().total_seconds())
            log.warning("dispatch.silent", silent_s=silent_s)
            self._tell("dispatch.silent", silent_s=silent_s)
        self.silent = is_silent

    async def _stop(self, reason: StopReason) -> None:
        wanted = (reason, self.kill_asked)
        if self.agent is None or self._told_stop == wanted:
            return
        log.info("agent.stopping", reason=reason, now=self.kill_asked)
        self._tell("agent.stopping", reason=str(reason), now=self.kill_asked)
        try:
            await self.agent.stop(reason, now=self.kill_asked)
            self._told_stop = wanted
        except (Unavailable, Refused) as error:
            log.warning("agent.unreachable", error=str(error))
            await anyio.sleep(ASK_AGAIN.total_seconds())
            self.bell.ring()

    async def _follow(self, agent: Agent) -> None:
        backend, told = self.record.dispatch.route.backend, self.record.report
        hearing = self._hearing = Hearing(self._world, backend, told, agent)

        def on_line(line: str) -> None:
            if hearing.line(line):
                self._lookout.ask()
            if hearing.session != self.record.report.session:
                self.bell.ring()

        ended = await followed(agent, on_line, hearing.longest_line)
        hearing.line("")
        self._exit = ended
        self._on_change()
        now = self._world.clock.now()
        at = min(agent.ended_at or now, now)
        self._exit_s = self._world.clock.monotonic() - (now - at).total_seconds()
        told = hearing.report
        await self._store(
            replace(
                self.record,
                state=DispatchState.EXITED,
                exit=ended,
                exited_at=at,
                report=told,
                cost_usd=told.usage.cost_usd,
                tokens=told.usage.tokens,
            )
        )
        log.info(
            "agent.exited",
            how="spawn error" if ended.spawn_error else ended.lost or ended.in_words,
            stopped_by=ended.stopped_by,
            active_s=round(ended.active.total_seconds(), 1),
        )
        self._tell("agent.exited", how=ended.in_words, stopped_by=ended.stopped_by)
        self._on_change()
        self._lookout.ask()
        self.bell.ring()

    async def _note_session(self) -> None:
        """Write down which session the agent has, so that it can be taken up again by name."""
        if self._exit is None and self.report.session != self.record.report.session:
            await self._store(replace(self.record, report=self.report))

    async def _note_sighting(self, seen: Sighting | None) -> None:
        if seen is None or seen.asked_s == self._seen_s:
            return
        had_looked, self._seen_s = self.has_looked, seen.asked_s
        before, self._pull, pull = self._pull, seen.pull, seen.pull
        if is_accepted(before, pull):
            self.accepted_usd = self.report.usage.cost_usd
        if self._exit is not None and seen.asked_s >= self._exit_s:
            self._quiet = [*self._quiet, seen.asked_s] if pull.state is PullState.NONE else []
        now, now_s = self._world.clock.now(), self._world.clock.monotonic()
        is_new = before is None or (before.state, before.number) != (pull.state, pull.number)
        record = with_sighting(self.record, before, pull, now, self.active())
        failed_since = record.checks_failed_since
        has_turned = failed_since != self.record.checks_failed_since
        self._pull_s = now_s if is_new else self._pull_s
        if has_turned:
            self._checks_s = None if failed_since is None else now_s
        if is_new or has_turned:
            await self._store(replace(record, pull=pull))
        if is_new and (before is not None or pull.state is not PullState.NONE):
            log.info("pull.changed", state=pull.state, number=pull.number, checks=pull.checks)
            self._tell("pull.changed", state=str(pull.state), number=pull.number)
            self._on_change()
        elif self.has_looked and not had_looked:
            self._on_change()  # a daemon that ends may wait for no more than this

    async def _store(self, record: Record) -> None:
        self.record = record
        self._storing += 1
        try:
            await self._world.store(record)
        finally:
            self._storing -= 1

    def _ago(self, at: datetime | None) -> float:
        """Seconds since an instant on record; not negative, as wall clocks may be put back."""
        return 0.0 if at is None else max((self._world.clock.now() - at).total_seconds(), 0.0)

    def _tell(self, event: str, **fields: object) -> None:
        dispatch = self.record.dispatch
        self._world.tell(event, gap=dispatch.gap.id, dispatch=dispatch.id, **fields)


def _span(seconds: float) -> timedelta:
    return timedelta(seconds=max(seconds, 0.0))
