"""Where the time goes between a slot that comes free and the next agent at work, phase by phase.

What the daemon asks of its ports is timed by standing in their place, in a run that was asked for
it; any other run knows nothing of this. What happens in a shim is read from the times of the files
that it writes, and is as exact as the file system's clock, some milliseconds.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from chump_orchestrator import throwaway, wiring
from chump_orchestrator.core.errors import Refused

if TYPE_CHECKING:
    from chump_orchestrator.core.ports import Clock
    from chump_orchestrator.daemon.world import World

DISPATCHES = 9
"""One more than are measured: nothing ends before the first."""

SHELL = "/bin/sh"

AGENT = """\
: > "{times}/$1.first"
echo "$1" > "$1.txt"
git add -- "$1.txt"
git commit -q -m "$1"
git push -q origin "HEAD:refs/heads/$2"
sleep {rest_s}
: > "{times}/$1.last"
"""
"""Leaves its first and its last moment as times of files, and an open request between the two."""

REST_S = 2
"""How long an agent does nothing, so that the next worktree has been prepared meanwhile."""

SETTINGS = """\
max_parallel = 1
max_open_pulls = 1000
[backend]
use = "custom"
[backend.custom]
argv = {argv}
[pulls]
use = "git"
interval = "30s"
[worktrees]
min_free = "0GiB"
prepared = {prepared}
"""

ASKED: Mapping[str, Mapping[str, str]] = {
    "worktrees": {"refresh": "refresh", "propose": "propose", "add": "worktree"},
    "ledger": {"attempts": "ledger", "add": "ledger", "update": "ledger"},
    "leases": {"claim": "lease"},
    "prompts": {"prompt": "brief"},
    "executor": {"launch": "launch"},
}
"""Which phase a port's method belongs to."""

PHASES: Mapping[str, str] = {
    "end": "the last agent's end: its shim sweeps up and writes it down",
    "pick": "noticed, and the next gap picked",
    "refresh": "the base, fetched where that is due",
    "propose": "names that nobody has",
    "ledger": "the plan on record, and each step",
    "worktree": "the worktree: claimed from those prepared, or added",
    "lease": "the gap claimed",
    "brief": "lessons and brief",
    "order": "the order for the shim written",
    "shim": "the shim's interpreter, where it has not started meanwhile",
    "fork": "the agent forked, and on record",
    "exec": "the agent let go, and at work",
    "rest": "all else",
}
"""All of them in their order, and what happens in each."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A stretch of a dispatch's way, in seconds since the epoch."""

    phase: str
    began: float
    ended: float


@dataclass(slots=True)
class Stopwatch:
    """Times what one task asks of the ports on the way to its agent; see `watch`."""

    ways: dict[str, list[Leg]] = field(default_factory=dict)
    """By gap, from the first question to the launch."""
    folders: dict[str, str] = field(default_factory=dict)
    """The dispatch of each gap."""
    _under_way: dict[int, list[Leg]] = field(default_factory=dict)

    def watch(self, world: World) -> None:
        """Stand in the place of the ports of `world`, from now on."""
        for port, phases in ASKED.items():
            setattr(world, port, _Timed(getattr(world, port), phases, self, world.clock))
        if world.lessons is not None:
            world.lessons = self.timed(world.lessons, "brief", world.clock)

    def timed(
        self, ask: Callable[..., Awaitable[Any]], phase: str, clock: Clock
    ) -> Callable[..., Awaitable[Any]]:
        """Return `ask` with its time taken, as a part of `phase`."""

        async def asked(*args: object, **named: object) -> Any:  # noqa: ANN401 - whatever it gives
            task = anyio.get_current_task().id
            if phase == "refresh":
                self._under_way[task] = []
            began = clock.now().timestamp()
            try:
                return await ask(*args, **named)
            finally:
                # A supervisor's records, and what else is none of a launch's business, count not.
                legs = self._under_way.get(task)
                if legs is not None:
                    legs.append(Leg(phase, began, clock.now().timestamp()))
                if phase == "launch" and legs is not None:
                    self._arrived(task, args[0])

        return asked

    def _arrived(self, task: int, dispatch: Any) -> None:  # noqa: ANN401 - a Dispatch, as it comes
        self.ways[dispatch.gap.id] = self._under_way.pop(task)
        self.folders[dispatch.gap.id] = dispatch.id


class _Timed:
    """A port with some of its methods timed."""

    def __init__(
        self, port: object, phases: Mapping[str, str], watch: Stopwatch, clock: Clock
    ) -> None:
        self._port = port
        for name, phase in phases.items():
            setattr(self, name, watch.timed(getattr(port, name), phase, clock))

    def __getattr__(self, name: str) -> object:
        return getattr(self._port, name)


@dataclass(frozen=True, slots=True)
class Profile:
    """How long each phase took, in milliseconds, one value for each dispatch."""

    phases: Mapping[str, Sequence[float]]
    total: Sequence[float]


async def profile(root: Path, *, gaps: Sequence[str], prepared: int = 2) -> Profile:
    """Dispatch `gaps` one after the other in the repository at `root`, and time the way there.

    It is for a throw-away repository: its settings are replaced, and its requests stay open. All
    `gaps` are in its backlog already, in this order. `Refused` when not all had an agent.
    """
    times = root.parent / "times"
    times.mkdir(exist_ok=True)
    agent = root.parent / "timed-agent.sh"
    agent.write_text(AGENT.format(times=times, rest_s=REST_S), "utf-8")
    argv = json.dumps([SHELL, str(agent), "{gap}", "{branch}"])
    settings = root / ".chump" / "orchestrator.toml"
    settings.write_text(SETTINGS.format(argv=argv, prepared=prepared), "utf-8")
    loaded = throwaway.load(root)
    watch = Stopwatch()
    options = wiring.RunOptions(once=True, pull_wait=timedelta(0), around=watch.watch)
    await wiring.run(root, loaded, options)
    try:
        return _profile(watch, gaps, times, wiring.state_dir(root, loaded) / "d")
    except (OSError, KeyError) as error:
        raise Refused(f"not every agent of the try-out was started and ended: {error}") from error


def _profile(watch: Stopwatch, gaps: Sequence[str], times: Path, folders: Path) -> Profile:
    found: dict[str, list[float]] = {phase: [] for phase in PHASES}
    totals = []
    for before, gap in pairwise(gaps):
        legs = watch.ways[gap]
        here, there = folders / watch.folders[gap], folders / watch.folders[before]
        last, first = _at(times / f"{before}.last"), _at(times / f"{gap}.first")
        ended = _at(there / "exit.json")
        order, lock = _at(here / "spec.json"), _at(here / "lock")
        running = _at(here / "running.json")
        launched = next(leg.began for leg in legs if leg.phase == "launch")
        took = dict.fromkeys(PHASES, 0.0)
        for leg in legs:
            if leg.phase in took:
                took[leg.phase] += leg.ended - leg.began
        took |= {
            "end": ended - last,
            "pick": legs[0].began - ended,
            "order": order - launched,
            "shim": lock - order,
            "fork": running - lock,
            "exec": first - running,
        }
        total = first - last
        took["rest"] = total - sum(took.values())
        for phase, seconds in took.items():
            found[phase].append(seconds * 1e3)
        totals.append(total * 1e3)
    return Profile(found, totals)


def _at(path: Path) -> float:
    return path.stat().st_mtime


async def self_test_timing(say: Callable[[str], None]) -> int:
    """Time some dispatches in a throw-away repository and print the phases; 0 when that went well.

    Takes about half a minute.
    """
    gaps = [f"TIMED-{number}" for number in range(1, DISPATCHES + 1)]
    backlog = "gaps:\n" + "".join(
        f"- {{id: {gap}, title: Takes its time, priority: P1, effort: s, status: open}}\n"
        for gap in gaps
    )
    root, _ = await throwaway.repository("timing", backlog, "")
    say(f"{DISPATCHES} dispatches, one after the other, in a small repository; some 30 s")
    try:
        found = await profile(root, gaps=gaps)
    except Refused as error:
        say(f"FAIL {error}")
        return 1
    finally:
        shutil.rmtree(root.parent, ignore_errors=True)
    for line in table(found):
        say(line)
    return 0


def table(found: Profile) -> list[str]:
    """Return the phases for people: medians and the most of each, in milliseconds."""
    lines = [f"{'phase':<10}{'median':>9}{'most':>9}  ms"]
    for phase, what in PHASES.items():
        values = found.phases[phase]
        lines.append(f"{phase:<10}{statistics.median(values):9.1f}{max(values):9.1f}  {what}")
    total = statistics.median(found.total)
    lines.append(f"{'total':<10}{total:9.1f}{max(found.total):9.1f}  from one agent's last word")
    lines[-1] += " to the next one's first"
    return lines
