"""The loading of backlogs, and how long the loop is kept waiting meanwhile.

Beside a parse of 543 entries by PyYAML's CSafeLoader.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio
import anyio.to_process
import yaml

from chump_orchestrator.adapters.backlogs import YamlFile
from chump_orchestrator.core.picker import PickPolicy, choose
from tests.backlog_fixture import ENTRIES, backlog
from tests.benchmarks.measuring import Lag, Room, Row, Target, peak_mb, timed_ms

MANY = 100_000
FREE_SLOTS = 8
TICK_S = 0.001
PARSE = "CSafeLoader"


@dataclass(frozen=True, slots=True)
class Loaded:
    """One load and one pick, in milliseconds; `late_ms` is the loop's worst moment."""

    load_ms: float
    pick_ms: float
    late_ms: float


def write(path: str, entries: int) -> None:
    Path(path).write_bytes(backlog(entries).encode())


def edit(path: str, old: str, new: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(f"    {old}\n".encode(), f"    {new}\n".encode(), 1))


def rows(room: Room) -> list[Row]:
    folder = room.folder("backlog")
    edits, parses = anyio.run(_edits, folder / "gaps.yaml", room.rounds(11, quick=3))
    load_and_pick = tuple(one.load_ms + one.pick_ms for one in edits)
    many = 5_000 if room.quick else MANY
    (folder / "many").mkdir()
    first = _in_its_own_process(folder / "many" / "gaps.yaml", many)
    what = f"{many:,} gaps"
    return [
        Row(
            "backlog.edit",
            "one entry of 543 changed: load and pick",
            "ms",
            load_and_pick,
            Target(5),
        ),
        Row(
            "backlog.edit.ratio",
            "the same, beside a whole parse",
            "ms",
            load_and_pick,
            Target(0.2, of="ratio"),
            PARSE,
            parses,
        ),
        Row(
            "backlog.edit.loop",
            "meanwhile: longest that the loop was late",
            "ms",
            tuple(one.late_ms for one in edits),
            Target(10),
        ),
        Row("backlog.many", f"{what}: first load", "s", (first["load_ms"] / 1e3,), Target(8)),
        Row("backlog.many.pick", f"{what}: pick", "ms", (first["pick_ms"],), Target(20)),
        Row(
            "backlog.many.memory",
            f"{what}: most memory of the process",
            "MB",
            (first["peak_mb"],),
            Target(400),
        ),
        Row("backlog.many.loop", "meanwhile: longest late", "ms", (first["late_ms"],)),
        Row("backlog.many.cached", f"{what}: first load after a restart", "s", (first["again_s"],)),
    ]


async def _loaded(source: YamlFile) -> Loaded:
    lag = Lag(TICK_S)
    async with anyio.create_task_group() as group:
        group.start_soon(lag.run)
        await anyio.sleep(0.05)
        del lag.found[:]
        began = time.perf_counter()
        found = await source.load()
        loaded_ms = (time.perf_counter() - began) * 1e3
        picked_ms = timed_ms(lambda: choose(found, FREE_SLOTS, PickPolicy()))
        await anyio.sleep(2 * TICK_S)
        group.cancel_scope.cancel()
    return Loaded(loaded_ms, picked_ms, max(lag.found))


async def _edits(path: Path, rounds: int) -> tuple[tuple[Loaded, ...], tuple[float, ...]]:
    """Change an entry again and again, and load; beside whole parses of the same text."""
    write(str(path), ENTRIES)
    source = YamlFile(path=path)
    await _loaded(source)
    found, parses = [], []
    for number in range(rounds):
        if number % 2:
            edit(str(path), "effort: s", "effort: l")
        else:
            edit(str(path), "effort: m", "effort: m\n    note: more")
        found.append(await _loaded(source))
        text = path.read_bytes()
        parses.append(timed_ms(lambda text=text: yaml.load(text, yaml.CSafeLoader)))  # type: ignore[misc]
    return tuple(found), tuple(parses)


def _in_its_own_process(path: Path, entries: int) -> dict[str, float]:
    """Load a large one where nothing else takes memory; `again` is as after a restart."""
    anyio.run(anyio.to_process.run_sync, write, str(path), entries)
    time.sleep(2.1)
    told: list[dict[str, float]] = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(path)], capture_output=True, check=True, text=True
        )
        told.append(json.loads(done.stdout))
    return told[0] | {"again_s": told[1]["load_ms"] / 1e3}


async def _first(path: Path) -> dict[str, float]:
    found = await _loaded(YamlFile(path=path, cache=path.parent / "cache"))
    return asdict(found) | {"peak_mb": peak_mb()}


if __name__ == "__main__":
    print(json.dumps(anyio.run(_first, Path(sys.argv[1]))))
