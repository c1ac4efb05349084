"""From a free slot to the next agent at work, and from an agent's end to what is kept of it.

The real `run`, one slot, agents that are shell scripts and note their first and last moment.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Self

import anyio

from chump_orchestrator import timing
from tests.benchmarks.measuring import Room, Row, Target, timed_ms
from tests.benchmarks.yard import FILES, PUSH, Yard, working

REST = "sleep 3\n"
"""Long enough for the next worktree to be prepared, of a large repository on a busy machine."""

SHORT_REST = "sleep 1\n"
CLAIMED = 'cat .git > "$PROJECT_TIMES/$gap.git"\n'


def rows(room: Room) -> list[Row]:
    count = room.rounds(10, quick=4)
    files = FILES if not room.quick else 500
    prepared = _turns(room, "prepared", REST, count, files, prepared=2)
    added, adds, alone = _without(room, max(count // 2, 3), files)
    shim_ms, phases = _phases(room, files)
    ends = _ends(room, room.rounds(8, quick=3))
    return [
        Row(
            "slots.prepared",
            "agent gone to next agent at work, worktree prepared",
            "ms",
            prepared,
            Target(60),
        ),
        Row("slots.shim", "of which the shim: order to agent at work", "ms", shim_ms, Target(40)),
        Row(
            "slots.added",
            "agent gone to next agent at work, worktree added; beyond git's own add with 4 workers",
            "ms",
            tuple(one - other for one, other in zip(added, adds, strict=True)),
            Target(60),
            note=f"{_middle(added):.0f} ms in all; git's own add alone is {_middle(adds):.0f}, and"
            f" {_middle(alone):.0f} with one worker",
        ),
        Row(
            "slots.settled",
            "agent gone to outcome known and reflection durable, request merged before",
            "ms",
            ends[0],
            Target(50),
        ),
        Row("slots.journalled", "agent gone to reflection in the shared journal", "ms", ends[1]),
        *phases,
    ]


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _turns(
    room: Room, name: str, rest: str, count: int, files: int, *, prepared: int
) -> tuple[float, ...]:
    """Return for each change of agents in the only slot how long it took."""
    ids = [f"TURN-{number}" for number in range(count + 1)]
    yard = Yard.lay_out(
        room.folder(name),
        ids,
        CLAIMED + PUSH + rest,
        prepared=prepared,
        interval="30s",
        files=files,
    )
    with working(yard):
        yard.await_events("agent.exited", len(ids))
    found = []
    for before, after in pairwise(ids):
        is_claimed = "/worktrees/ready-" in (yard.times / f"{after}.git").read_text()
        # One that was not ready yet is another row's.
        if is_claimed == bool(prepared):
            found.append(yard.at_ms(after, "first") - yard.at_ms(before, "last"))
    if len(found) < len(ids) // 2:
        raise AssertionError(f"{name}: only {len(found)} of {len(ids)} had such a worktree")
    return tuple(found)


def _without(
    room: Room, count: int, files: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Return the same without prepared worktrees, and git's own adds in the same repository.

    These are made with four workers, and with one.
    """
    turns = _turns(room, "added", SHORT_REST, count, files, prepared=0)
    yard = Yard(room.memory / "added")
    adds: dict[int, list[float]] = {4: [], 1: []}
    for number in range(len(turns)):
        for workers, values in adds.items():
            place = yard.folder / "plain" / f"{number}-{workers}"
            with_ = ("-c", f"checkout.workers={workers}")
            argv = (*with_, "worktree", "add", "-q", "--detach", str(place), "main")
            values.append(timed_ms(lambda argv=argv: yard.git(*argv)))  # type: ignore[misc]
            yard.git("worktree", "remove", "--force", str(place))
    return turns, tuple(adds[4]), tuple(adds[1])


def _phases(room: Room, files: int) -> tuple[tuple[float, ...], list[Row]]:
    """Return the shim's share, and every phase of a turn as a row without a target."""
    ids = [f"PHASE-{number}" for number in range(room.rounds(9, quick=3))]
    yard = Yard.lay_out(room.folder("phases"), ids, "", files=files)

    async def profiled() -> timing.Profile:
        return await timing.profile(yard.root, gaps=ids)

    try:
        found = anyio.run(profiled)
    finally:
        yard.clean()
    parts = ("order", "shim", "fork", "exec")
    shares = zip(*(found.phases[part] for part in parts), strict=True)
    told = [
        Row(f"phase.{phase}", what, "ms", tuple(found.phases[phase]))
        for phase, what in timing.PHASES.items()
    ]
    told.append(
        Row("phase.total", "one agent's last word to the next's first", "ms", (*found.total,))
    )
    return tuple(map(sum, shares)), told


def _ends(room: Room, count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return how long outcomes took, in the ledger and in the journal that others read."""
    ids = [f"END-{number}" for number in range(count)]
    yard = Yard.lay_out(
        room.folder("ends", on_disk=True), ids, PUSH + "sleep 2.5\n", merges=True, interval="1s"
    )
    with working(yard), _Journal(yard.root / "sessions" / "chump_memory.db") as journal:
        yard.await_events("dispatch.settled", len(ids))
        journal.await_rows(len(ids))
    settled = {one["gap"]: one["t_ns"] / 1e6 for one in yard.told("dispatch.settled")}
    shipped = {one["gap"] for one in yard.told("dispatch.settled") if one["outcome"] == "shipped"}
    if shipped != set(ids):
        raise AssertionError(f"not all have shipped: {yard.told('dispatch.settled')}")
    ended = {gap: yard.at_ms(gap, "last") for gap in ids}
    return (
        tuple(settled[gap] - ended[gap] for gap in ids),
        tuple(journal.seen[gap] - ended[gap] for gap in ids),
    )


class _Journal:
    """Looks for new rows all the time, and notes when each of them was there."""

    def __init__(self, path: Path) -> None:
        self.seen: dict[str, float] = {}
        self._path = path
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def await_rows(self, count: int) -> None:
        until = time.monotonic() + 30
        while len(self.seen) < count and time.monotonic() < until:
            time.sleep(0.05)

    def _look(self) -> None:
        while not self._path.exists() and not self._is_over.wait(0.01):
            pass
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            version = -1
            while not self._is_over.wait(0.002):
                try:
                    (now,) = connection.execute("PRAGMA data_version").fetchone()
                    if now == version:
                        continue
                    rows = connection.execute("SELECT task_id FROM chump_reflections").fetchall()
                except sqlite3.OperationalError:
                    continue  # it is only just being made
                version, at_ms = now, time.time_ns() / 1e6
                for (gap,) in rows:
                    self.seen.setdefault(gap, at_ms)
