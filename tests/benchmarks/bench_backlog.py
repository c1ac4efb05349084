"""Measures the loading of backlogs, and how long the loop is kept waiting meanwhile.

Run by hand: `python -m tests.benchmarks.bench_backlog [ENTRIES]`. Ratios are to a parse by
PyYAML's CSafeLoader of 543 entries in the same run, as machines differ and are busy.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_process
import yaml

from chump_orchestrator.adapters.backlogs import YamlFile
from chump_orchestrator.core.picker import PickPolicy, choose
from tests.backlog_fixture import ENTRIES, backlog

ROUNDS = 5
TICK_S = 0.001


class Lag:
    """Sleeps again and again, and keeps by how much it woke up too late, in seconds."""

    def __init__(self) -> None:
        self.found: list[float] = []

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await anyio.sleep(TICK_S)
            self.found.append(time.monotonic() - before - TICK_S)

    def told(self) -> dict[str, float]:
        late = sorted(self.found) or [0.0]
        return {
            "lag_p50_ms": round(late[len(late) // 2] * 1e3, 2),
            "lag_p99_ms": round(late[int(len(late) * 0.99)] * 1e3, 2),
            "lag_max_ms": round(late[-1] * 1e3, 2),
        }


def peak_mib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak / (1024 if sys.platform == "linux" else 1024**2))


def write(path: str, entries: int) -> None:
    Path(path).write_bytes(backlog(entries).encode())


def edit(path: str, old: str, new: str) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data.replace(f"    {old}\n".encode(), f"    {new}\n".encode(), 1))


async def timed(source: YamlFile) -> dict[str, float]:
    lag = Lag()
    async with anyio.create_task_group() as group:
        group.start_soon(lag.run)
        await anyio.sleep(0.05)
        lag.found.clear()
        began = time.monotonic()
        loaded = await source.load()
        loaded_s = time.monotonic() - began
        began = time.monotonic()
        choose(loaded, 8, PickPolicy())
        picked_s = time.monotonic() - began
        await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return {
        "load_ms": round(loaded_s * 1e3, 1),
        "pick_ms": round(picked_s * 1e3, 1),
        **lag.told(),
    }


def reference_ms() -> float:
    text = backlog().encode()
    taken = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        yaml.load(text, Loader=yaml.CSafeLoader)
        taken.append(time.monotonic() - began)
    return statistics.median(taken) * 1e3


async def measure(entries: int, folder: Path) -> dict[str, object]:
    path = folder / "gaps.yaml"
    # Elsewhere, so that making the file does not count in the peak of this process.
    await anyio.to_process.run_sync(write, str(path), entries)
    before = peak_mib()
    source = YamlFile(path=path)
    first = await timed(source)
    unchanged = await timed(source)
    peak = peak_mib()
    longer, in_place = [], []
    for _ in range(ROUNDS):
        await anyio.to_process.run_sync(edit, str(path), "effort: m", "effort: m\n    note: more")
        longer.append(await timed(source))
        await anyio.to_process.run_sync(edit, str(path), "effort: s", "effort: l")
        in_place.append(await timed(source))
    return {
        "entries": entries,
        "bytes": path.stat().st_size,
        "first": first,
        "unchanged": unchanged,
        "a_line_added": longer,
        "a_word_changed": in_place,
        "peak_mib": peak,
        "peak_before_mib": before,
    }


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    with tempfile.TemporaryDirectory() as folder:
        told = anyio.run(measure, entries, Path(folder))
    told["reference_ms"] = round(reference_ms(), 1)
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
