"""A world that stands still until it is told to move: twins of the ports, on the loop's clock."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import anyio

from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.brakes import RetryPolicy
from chump_orchestrator.core.complaints import Complaint
from chump_orchestrator.core.dispatch import (
    SESSION,
    Command,
    DeadlinePolicy,
    Dispatch,
    Names,
    Workspace,
    names,
)
from chump_orchestrator.core.errors import Refused, Unavailable
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import Exit, PullRequest, PullState, StopReason
from chump_orchestrator.core.picker import PickPolicy
from chump_orchestrator.core.records import Denied, Lease, Recalled, Removal, Watch
from chump_orchestrator.core.routing import Route, RoutePolicy
from chump_orchestrator.core.tail import LINE_BYTES
from chump_orchestrator.core.testimony import Progress, Usage
from chump_orchestrator.daemon.world import Policies, World
from chump_orchestrator.testing import MemoryJournal, MemoryLedger
from tests.builders import NOW

MINUTE = timedelta(minutes=1)


class LoopClock:
    """Both clocks follow the running loop, so that virtual time moves everything together."""

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


@dataclass
class ScriptedAgent:
    """An agent that does what the test says, when it says so."""

    id: str
    pid: int
    clock: LoopClock
    obeys: bool = True
    hard: timedelta | None = None
    stops: list[tuple[StopReason, bool]] = field(default_factory=list)
    exit: Exit | None = None
    ended_at: datetime | None = None
    said: tuple[str, ...] = ()
    printed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._began = self.clock.monotonic()
        self._wrote = self._began
        self._done = anyio.Event()
        self._followers: list[Callable[[str], None]] = []

    def active(self) -> timedelta:
        if self.exit is not None:
            return self.exit.active
        return timedelta(seconds=self.clock.monotonic() - self._began)

    def silent(self) -> timedelta:
        return timedelta(seconds=self.clock.monotonic() - self._wrote)

    def tail(self) -> tuple[str, ...]:
        return self.said

    def last_words(self, *, errors_only: bool = False) -> str:
        return "\n".join(self.said if errors_only else (*self.said, *self.printed))

    def writes(self, line: str) -> None:
        """Print a line on standard output, now."""
        self._wrote = self.clock.monotonic()
        self.printed.append(line)
        for on_line in self._followers:
            on_line(line)

    def ends(self, code: int | None = 0, **how: object) -> None:
        ended = Exit(code=code, active=self.active())
        self.exit = replace(ended, **how)  # type: ignore[arg-type]
        self.ended_at = self.clock.now()
        self._done.set()

    async def follow(
        self, on_line: Callable[[str], None], *, longest_line: int = LINE_BYTES
    ) -> Exit:
        for line in (*self.said, *self.printed):
            on_line(line[:longest_line])
        self._followers.append(on_line)
        await self._done.wait()
        assert self.exit is not None
        return self.exit

    async def stop(self, reason: StopReason, *, now: bool = False) -> None:
        self.stops.append((reason, now))
        if (self.obeys or now) and self.exit is None:
            self.ends(None, signal=15, stopped_by=str(reason))

    async def extend(self, hard: timedelta) -> None:
        self.hard = hard

    async def recount(self) -> None:
        """Its clock is the loop's, which never stands still."""


class ScriptedExecutor:
    """Starts scripted agents; `on_launch` may make a launch fail or give an agent its script."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.agents: dict[str, ScriptedAgent] = {}
        self.launched: list[str] = []
        self.expected: list[str] = []
        self.discarded: list[str] = []
        self.orders: dict[str, Recalled] = {}
        self.unreachable = ""
        self.on_launch: Callable[[Dispatch, ScriptedAgent], None] = lambda _d, _a: None

    @contextlib.asynccontextmanager
    async def expecting(self, dispatch_id: str) -> AsyncIterator[None]:
        self.expected.append(dispatch_id)
        yield

    async def launch(
        self, dispatch: Dispatch, workspace: Workspace, command: Command, prompt: str
    ) -> ScriptedAgent:
        agent = ScriptedAgent(dispatch.id, 1000 + len(self.launched), self.clock)
        self.on_launch(dispatch, agent)
        self.agents[dispatch.gap.id] = agent
        self.orders[dispatch.id] = Recalled(dispatch, workspace, self.clock.now())
        self.launched.append(dispatch.gap.id)
        return agent

    async def attach(self, dispatch_id: str) -> ScriptedAgent | None:
        if self.unreachable:
            raise Unavailable(self.unreachable)
        return next((a for a in self.agents.values() if a.id == dispatch_id), None)

    async def known(self) -> tuple[str, ...]:
        return tuple(agent.id for agent in self.agents.values())

    async def recall(self, dispatch_id: str) -> Recalled | None:
        return self.orders.get(dispatch_id)

    async def discard(self, dispatch_id: str) -> None:
        self.discarded.append(dispatch_id)


class ScriptedPulls:
    """A forge that knows what the test tells it, and is silent when told to be."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        self.states: dict[str, tuple[PullState, int | None]] = {}
        self.is_silent = False
        self.looks = 0
        self.asked: list[Sequence[Watch]] = []
        self.more: dict[str, dict[str, Any]] = {}
        self.complaints: tuple[Complaint, ...] = ()
        self.explained: list[Watch] = []

    async def check(self) -> None:
        """It can always be asked."""

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        self.looks += 1
        self.asked.append(watches)
        asked_at = self.clock.now()
        await anyio.sleep(0.05)
        if self.is_silent:
            raise Unavailable("the forge is silent")
        nothing = (PullState.NONE, None)
        return {
            w.branch: PullRequest(
                w.branch,
                self.states.get(w.branch, nothing)[0],
                asked_at,
                self.states.get(w.branch, nothing)[1],
                **self.more.get(w.branch, {}),
            )
            for w in watches
        }

    async def explain(self, watch: Watch, pull: PullRequest) -> tuple[Complaint, ...]:
        self.explained.append(watch)
        if self.is_silent:
            raise Unavailable("the forge is silent")
        return self.complaints


@dataclass
class ScriptedWorktrees:
    """Worktrees that are made and removed in memory."""

    there: set[str] = field(default_factory=set)
    holders: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    failing: str = ""
    base_failing: str = ""
    short: str = ""
    swept: int = 0
    maintained: int = 0
    maintaining_fails: str = ""
    prepared: list[int] = field(default_factory=list)
    preparing_fails: str = ""

    async def heal(self) -> tuple[str, ...]:
        return ()

    async def refresh(self, *, at_least: datetime | None = None) -> str:
        if self.base_failing:
            raise Unavailable(self.base_failing)
        return "b" * 40

    async def propose(self, gap: Gap) -> Names:
        return names(gap, self.there, prefix="claude/")

    async def add(self, names: Names, base: str, dispatch_id: str) -> Workspace:
        if self.failing:
            raise Refused(self.failing)
        self.there.add(names.folder)
        self.holders[f"/w/{names.folder}"] = dispatch_id
        return Workspace(f"/w/{names.folder}", names.branch, base)

    async def path_of(self, names: Names) -> str:
        return f"/w/{names.folder}"

    async def remove(self, workspace: Workspace, dispatch_id: str) -> Removal:
        if self.holders.get(workspace.path, dispatch_id) == dispatch_id:
            self.there.discard(workspace.path.removeprefix("/w/"))
            self.holders.pop(workspace.path, None)
        return Removal(removed=True)

    async def keep(self, workspace: Workspace, dispatch_id: str) -> Removal:
        self.kept.append(dispatch_id)
        return Removal(removed=False)

    async def holder(self, workspace: Workspace) -> str:
        return self.holders.get(workspace.path, "")

    async def hand_over(self, workspace: Workspace, giver: str, taker: str) -> bool:
        if self.failing:
            raise Unavailable(self.failing)
        if self.holders.get(workspace.path) == giver:
            self.holders[workspace.path] = taker
        return self.holders.get(workspace.path) == taker

    async def sweep_kept(self) -> tuple[str, ...]:
        self.swept += 1
        return ()

    async def maintain(self) -> None:
        self.maintained += 1
        if self.maintaining_fails:
            raise Unavailable(self.maintaining_fails)

    async def shortage(self) -> str:
        return self.short

    async def prepare(self, wanted: int) -> None:
        self.prepared.append(wanted)
        if self.preparing_fails:
            raise Unavailable(self.preparing_fails)


@dataclass
class ScriptedLeases:
    """Leases in memory; `others` are held by somebody else."""

    ours: dict[str, str] = field(default_factory=dict)
    others: dict[str, Lease] = field(default_factory=dict)
    denied: Denied | None = None

    async def claim(self, gap: Gap, dispatch_id: str, workspace: Workspace) -> Denied | None:
        if self.denied is None:
            self.ours[dispatch_id] = gap.id
        return self.denied

    async def renew(self, dispatch_id: str) -> None:
        """They do not end here."""

    async def release(self, dispatch_id: str) -> None:
        self.ours.pop(dispatch_id, None)

    async def live(self) -> tuple[Lease, ...]:
        return tuple(self.others.values())

    async def held_by_us(self) -> tuple[str, ...]:
        return tuple(self.ours)


class PlainPrompts:
    """A brief of one line."""

    async def prompt(self, gap: Gap, workspace: Workspace, lessons: tuple[str, ...]) -> str:
        return f"working on gap {gap.id}"


class PlainBackend:
    """A backend that understands numbers of pull requests."""

    label = "claude"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:
        return Command(("true",))

    def read(self, line: str) -> Usage | Progress | None:
        return Progress(int(line)) if line.isdigit() else None


class ResumingBackend(PlainBackend):
    """One whose agents can go on with a session; their first word is its name."""

    def __init__(self) -> None:
        self.resumed: list[tuple[str, str]] = []

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:
        return Command(("true",), ("--session-id", SESSION))

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:
        if prompt:
            self.resumed.append((session, prompt))
        return Command(("true",), ("--resume", session))


class FixedSource:
    """A backlog that the test may replace."""

    def __init__(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.version = 0

    def replace(self, backlog: Backlog) -> None:
        self.backlog = backlog
        self.version += 1

    async def stamp(self) -> str:
        return str(self.version)

    async def load(self) -> Backlog:
        return self.backlog


@dataclass
class Scene:
    """The world, and each of its twins by its own type."""

    world: World
    executor: ScriptedExecutor
    pulls: ScriptedPulls
    worktrees: ScriptedWorktrees
    leases: ScriptedLeases
    ledger: MemoryLedger
    journal: MemoryJournal
    source: FixedSource
    events: list[tuple[str, Mapping[str, object]]]

    def merge(self, gap_id: str, number: int = 7) -> None:
        self.pulls.states[f"claude/{gap_id.lower()}"] = (PullState.MERGED, number)


def a_scene(backlog: Backlog, **policies: object) -> Scene:
    """Return a world in which `backlog` is to be worked on, two at a time."""
    clock = LoopClock()
    executor, pulls = ScriptedExecutor(clock), ScriptedPulls(clock)
    worktrees, leases = ScriptedWorktrees(), ScriptedLeases()
    ledger, journal = MemoryLedger(), MemoryJournal()
    decided = Policies(
        pick=PickPolicy(),
        routes=RoutePolicy(Route("claude")),
        deadlines=DeadlinePolicy(),
        retry=RetryPolicy(),
    )
    events: list[tuple[str, Mapping[str, object]]] = []
    world = World(
        clock=clock,
        ledger=ledger,
        journal=journal,
        worktrees=worktrees,
        leases=leases,
        executor=executor,
        pulls=pulls,
        prompts=PlainPrompts(),
        backend=lambda _name: PlainBackend(),
        policies=replace(decided, **policies),  # type: ignore[arg-type]
        chance=random.Random(7),
        listeners=[lambda name, fields: events.append((name, fields))],
    )
    source = FixedSource(backlog)
    return Scene(world, executor, pulls, worktrees, leases, ledger, journal, source, events)
