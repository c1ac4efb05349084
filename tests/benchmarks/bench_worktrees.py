"""A worktree for a dispatch: claimed from those prepared, beside a plain `git worktree add`.

On a file system in memory where there is one: a disk's journal would be measured otherwise.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import children_watched_by_loop
from chump_orchestrator.adapters.worktrees.dispatches import GitWorktrees
from chump_orchestrator.core.dispatch import Names, Workspace
from tests.adapters.launches import RealClock
from tests.benchmarks.measuring import Room, Row, Target, awaited_ms, file_system, timed_ms
from tests.benchmarks.yard import FILES, Yard

AT_ONCE = 8
PLAIN = "git worktree add"


def rows(room: Room) -> list[Row]:
    files = 1000 if room.quick else FILES
    yard = Yard.lay_out(room.folder("worktrees"), ["WORK-1"], "", files=files)
    where = file_system(yard.root)
    bench = _Bench(yard)
    claims, adds = anyio.run(bench.claims, room.rounds(9, quick=3))
    seconds = 3.0 if room.quick else 8.0
    ours, ours_ms = anyio.run(bench.sustained, seconds)
    plain, plain_ms = bench.plain_sustained(seconds)
    return [
        Row(
            "worktrees.claim",
            f"prepared worktree of {files:,} files claimed, on {where}",
            "ms",
            claims,
            Target(1 / 40, of="ratio", words=f"≤ 1/40 of {PLAIN}"),
            PLAIN,
            adds,
        ),
        Row("worktrees.add", f"{PLAIN} itself", "ms", adds),
        Row(
            "worktrees.sustained",
            f"{AT_ONCE} at once, added, removed, recycled",
            "a second",
            (ours,),
            Target(8, of="ratio", at_least=True),
            f"{PLAIN}, {AT_ONCE} at once",
            (plain,),
        ),
        Row(
            "worktrees.sustained.cpu",
            "the same: CPU of one, on both cores",
            "ms",
            (ours_ms,),
            None,
            f"{PLAIN}, {AT_ONCE} at once",
            (plain_ms,),
        ),
    ]


def cpu_s() -> float:
    """Return what this process and those it has waited for have had of all cores."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class _Bench:
    def __init__(self, yard: Yard) -> None:
        self._yard = yard
        self._numbers = iter(range(10**9))
        self._git = Git(yard.root, dict(os.environ))
        self._worktrees = GitWorktrees(
            git=self._git,
            base_dir=yard.root / ".claude" / "worktrees",
            min_free=0,
            clock=RealClock(),
            prepared_dir=yard.state / "prepared",
        )

    async def claims(self, rounds: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        claims, adds = [], []
        with children_watched_by_loop():
            base = await self._begin()
            for _ in range(rounds):
                await self._worktrees.prepare(1)
                names, dispatch = self._next()
                made: list[Workspace] = []

                async def claim(
                    names: Names = names, dispatch: str = dispatch, made: list[Workspace] = made
                ) -> None:
                    made.append(await self._worktrees.add(names, base, dispatch))

                claims.append(await awaited_ms(claim))
                if "/worktrees/ready-" not in Path(made[0].path, ".git").read_text():
                    raise AssertionError("no prepared worktree was there to be claimed")
                adds.append(timed_ms(lambda name=dispatch: self._add(name)))  # type: ignore[misc]
                self._remove(dispatch)
                await self._worktrees.remove(made[0], dispatch)
            await self._worktrees.prepare(0)
        return tuple(claims), tuple(adds)

    async def sustained(self, seconds: float) -> tuple[float, float]:
        """Return how many dispatches a second get a worktree and give it back, and a one's CPU."""
        done = 0
        with children_watched_by_loop():
            base = await self._begin()
            await self._fill(base)
            wants = anyio.Event()

            async def work() -> None:
                nonlocal done
                while time.perf_counter() < until:
                    names, dispatch = self._next()
                    workspace = await self._worktrees.add(names, base, dispatch)
                    await self._worktrees.remove(workspace, dispatch)
                    done += 1
                    wants.set()

            async def keep_ready() -> None:
                nonlocal wants
                while True:
                    await wants.wait()
                    wants = anyio.Event()
                    await self._worktrees.prepare(AT_ONCE)

            began, spent = time.perf_counter(), cpu_s()
            until = began + seconds
            async with anyio.create_task_group() as group:
                group.start_soon(keep_ready)
                async with anyio.create_task_group() as workers:
                    for _ in range(AT_ONCE):
                        workers.start_soon(work)
                rate = done / (time.perf_counter() - began)
                group.cancel_scope.cancel()
            each_ms = (cpu_s() - spent) / done * 1e3
            await self._worktrees.prepare(0)
        return rate, each_ms

    async def _fill(self, base: str) -> None:
        """Have as many as there are in the long run: those that wait, and those given back."""
        await self._worktrees.prepare(AT_ONCE)
        given = []
        for _ in range(AT_ONCE):
            names, dispatch = self._next()
            given.append((await self._worktrees.add(names, base, dispatch), dispatch))
        await self._worktrees.prepare(AT_ONCE)
        for workspace, dispatch in given:
            await self._worktrees.remove(workspace, dispatch)
        await self._worktrees.prepare(AT_ONCE)

    def plain_sustained(self, seconds: float) -> tuple[float, float]:
        """Return how many a second git adds, so many at once, and the CPU of one in ms."""
        until, made = time.perf_counter() + seconds, []
        lock = threading.Lock()

        def work() -> None:
            while time.perf_counter() < until:
                with lock:
                    name = f"plain-{next(self._numbers)}"
                # Those that meet another one's lock fail, and count not.
                with suppress(Exception):
                    self._add(name)
                    made.append(name)

        began, spent = time.perf_counter(), cpu_s()
        threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rate = len(made) / (time.perf_counter() - began)
        each_ms = (cpu_s() - spent) / len(made) * 1e3
        for name in made:
            self._remove(name)
        return rate, each_ms

    async def _begin(self) -> str:
        await self._worktrees.exclude()
        await self._worktrees.heal()
        return await self._worktrees.refresh(at_least=datetime.now(UTC))

    def _next(self) -> tuple[Names, str]:
        number = next(self._numbers)
        slug = f"work-{number}"
        return Names(f"claude/{slug}", slug), f"{slug}-260427120000-aaaaaa"

    def _add(self, name: str) -> None:
        place = self._yard.folder / "plain" / name
        self._yard.git("worktree", "add", "-q", "--no-track", "-b", name, str(place), "main")

    def _remove(self, name: str) -> None:
        self._yard.git("worktree", "remove", "--force", str(self._yard.folder / "plain" / name))
        self._yard.git("branch", "-q", "-D", name)
