"""One look at 50 open pull requests, by a `gh` that is a small script."""

from __future__ import annotations

import os
import resource
import time
from datetime import UTC, datetime

import anyio

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import children_watched_by_loop
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.core.outcome import PullState
from chump_orchestrator.core.records import Watch
from tests.adapters.a_repository import ARepository
from tests.adapters.fake_gh import FakeGh
from tests.adapters.launches import RealClock
from tests.benchmarks.measuring import Room, Row, Target, cpu_of_children_s

PULLS = 50


def rows(room: Room) -> list[Row]:
    folder = room.folder("pulls")
    repository = ARepository(folder / "repository")
    gh = FakeGh(folder / "bin")
    watches = []
    for number in range(PULLS):
        branch = f"claude/pull-{number}"
        tree, parent = f"{repository.base}^{{tree}}", repository.base
        head = repository.git("commit-tree", tree, "-p", parent, "-m", branch)
        for place in ("heads", "remotes/origin"):
            repository.git("update-ref", f"refs/{place}/{branch}", head)
        watches.append(repository.watch(branch))
        gh.request(number + 1, branch, head, datetime.now(UTC))
    found = anyio.run(_looks, repository, gh, watches, room.rounds(9, quick=3))
    # The first look makes sure, once for each request, whose it is.
    calls, cpu, wall = zip(*found[1:], strict=True)
    return [
        Row("pulls.requests", f"{PULLS} open requests: calls of gh", "", calls, Target(1)),
        Row("pulls.cpu", "the same: CPU, gh's and git's included", "s", cpu, Target(0.15)),
        Row("pulls.wall", "the same: wall", "s", wall),
        Row("pulls.first", "the first look: CPU", "s", (found[0][1],)),
    ]


async def _looks(
    repository: ARepository, gh: FakeGh, watches: list[Watch], rounds: int
) -> list[tuple[float, float, float]]:
    environ = {
        **repository.env,
        "PATH": f"{gh.folder}:{os.environ['PATH']}",
        "GH_REPO": gh.repository,
    }
    pulls = GhPulls(git=Git(repository.root, environ), env=environ, clock=RealClock())
    found = []
    with children_watched_by_loop():
        for _ in range(rounds):
            calls, cpu_s, began = len(gh.calls), _cpu_s(), time.perf_counter()
            seen = await pulls.look(watches)
            wall_s = time.perf_counter() - began
            is_open = [pull.state is PullState.OPEN for pull in seen.values()]
            if is_open.count(True) != PULLS:
                raise AssertionError(f"{is_open.count(True)} of {PULLS} were seen to be open")
            found.append((float(len(gh.calls) - calls), _cpu_s() - cpu_s, wall_s))
    return found


def _cpu_s() -> float:
    own = resource.getrusage(resource.RUSAGE_SELF)
    return own.ru_utime + own.ru_stime + cpu_of_children_s()
