"""What a measurement is: its values, what it is compared with, its target, and the ways to take it.

Rounds of the things compared are interleaved, so that a busy minute meets all of them alike: a
ratio holds on a machine that does something else beside, where a time does not.
"""

from __future__ import annotations

import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio

TICK_S = 0.005
"""Between two looks at how late the loop is."""


@dataclass(frozen=True, slots=True)
class Target:
    """A limit for the median of a row, or for its ratio to what it is compared with.

    `words` is what people read; by default the limit itself.
    """

    limit: float
    of: Literal["value", "ratio"] = "value"
    at_least: bool = False
    words: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: all values of all rounds, in `unit`.

    `others` are the values of what it is compared with, called `against`, in the same unit. They
    are paired with `values` where there are as many.
    """

    name: str
    what: str
    unit: str
    values: tuple[float, ...]
    target: Target | None = None
    against: str = ""
    others: tuple[float, ...] = ()
    note: str = ""

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """From the 10th to the 90th percentile: from least to most of fewer than ten."""
        return percentile(self.values, 0.1), percentile(self.values, 0.9)

    @property
    def ratio(self) -> float | None:
        """The median of the ratios of pairs, or the ratio of the medians; `None` without others."""
        if not self.others or not all(self.others):
            return None
        if len(self.others) == len(self.values):
            pairs = zip(self.values, self.others, strict=True)
            return statistics.median(one / other for one, other in pairs)
        return self.median / statistics.median(self.others)

    @property
    def judged(self) -> float | None:
        """The number that the target is about; `None` where there is none."""
        if self.target is None:
            return None
        return self.ratio if self.target.of == "ratio" else self.median

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; `None` where there is none."""
        if self.target is None or self.judged is None:
            return None
        if self.target.at_least:
            return self.judged >= self.target.limit
        return self.judged <= self.target.limit

    @property
    def missed_by(self) -> float | None:
        """How many times too much, or too little, it is; `None` where the target is met."""
        if self.target is None or self.judged is None or self.is_met:
            return None
        if self.target.at_least:
            return self.target.limit / self.judged if self.judged else math.inf
        return self.judged / self.target.limit


@dataclass(frozen=True, slots=True)
class Room:
    """Where and how long to measure.

    `memory` is a folder in memory where there is such a file system, `disk` one on a disk; either
    is deleted afterwards. A `quick` measurement shows that all works, and says little; a `long` one
    shows what only long work does, and takes its time.
    """

    memory: Path
    disk: Path
    quick: bool = False
    long: bool = False
    notes: dict[str, str] = field(default_factory=dict)

    def rounds(self, wanted: int, *, quick: int = 2, long: int = 0) -> int:
        """Return how often to measure."""
        if self.quick:
            return quick
        return long if long and self.long else wanted

    def folder(self, name: str, *, on_disk: bool = False) -> Path:
        """Make a new folder of that name."""
        place = (self.disk if on_disk else self.memory) / name
        place.mkdir(parents=True)
        return place


Bench = Callable[[Room], list[Row]]
"""What a module of this folder gives as `rows`."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` of them lie, by the nearest rank."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def interleaved(
    rounds: int, ways: Mapping[str, Callable[[], float]], *, warm_up: bool = True
) -> dict[str, tuple[float, ...]]:
    """Take each of the ways once a round, in turn, and return what each of them gave.

    Every other round goes backwards, so that none always comes after the same one.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    if warm_up:
        for way in ways.values():
            way()
    for number in range(rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(ways[name]())
    return {name: tuple(values) for name, values in found.items()}


def timed_ms(work: Callable[[], object]) -> float:
    """Return how long it takes, in milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3


async def awaited_ms(work: Callable[[], Awaitable[object]]) -> float:
    """Return how long it takes, in milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1e3


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program took: wall time and CPU, its own and its children's, in milliseconds."""

    wall_ms: float
    cpu_ms: float


def ran(argv: Sequence[str], *, cwd: Path | None = None, codes: tuple[int, ...] = (0,)) -> Ran:
    """Run a program to its end without a word to anybody."""
    before, began = cpu_of_children_s(), time.perf_counter()
    done = subprocess.run(argv, cwd=cwd, capture_output=True, check=False)
    wall_s, cpu_s = time.perf_counter() - began, cpu_of_children_s() - before
    if done.returncode not in codes:
        raise AssertionError(f"{argv}: {done.returncode}: {done.stderr.decode()[-2000:]}")
    return Ran(wall_s * 1e3, cpu_s * 1e3)


def cpu_of_children_s() -> float:
    """Return the CPU time of all children that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def peak_mb() -> float:
    """Return the most memory that this process ever had, in megabytes."""
    with suppress(OSError):
        # What getrusage tells may be of whoever started this process.
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


class Lag:
    """Sleeps again and again, and keeps by how much it woke up too late, in milliseconds."""

    def __init__(self, tick_s: float = TICK_S) -> None:
        self.found = array("d")
        self._tick_s = tick_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            before = time.perf_counter()
            await anyio.sleep(self._tick_s)
            self.found.append((time.perf_counter() - before - self._tick_s) * 1e3)

    def p99(self) -> float:
        """Return what 99 of 100 looks were not later than."""
        return percentile(self.found, 0.99) if self.found else math.inf


def file_system(path: Path) -> str:
    """Return the kind of file system that `path` lies on, empty where that cannot be told."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8").splitlines()
    except OSError:
        return ""
    where = str(path.resolve())
    for line in mounts:
        _, point, what, *_ = line.split(" ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, what
    return kind


def machine(memory: Path, disk: Path) -> dict[str, Any]:
    """Return what the figures depend on."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
    except OSError:
        pass
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "processor": processor,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "git": git.split()[2],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "file_system": file_system(memory),
        "disk": file_system(disk),
        "load_before": round(os.getloadavg()[0], 2),
    }
