"""Thousands of dispatches through eight slots, one in ten with a fault: what grows, is told.

`python -m tests.faults.soak --dispatches 2000` prints the figures and ends with 1 when something
has grown (case 54 of the fault catalogue). The daemon is detached and started anew, and killed,
now and then; of each life the second half is compared with the first.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import psutil

from tests.e2e.projects import gaps
from tests.faults.trials import BYSTANDER, Trial

AGENT = """\
import random
chance = random.Random(dispatch + os.environ["PROJECT_SEED"]).random()
if gap != "OTHER-1" and chance < float(os.environ["PROJECT_FAULTS"]):
    sign("faults", gap, dispatch)
    kind = int(chance * 1e6) % 5
    if kind == 0:
        sys.exit(7)
    if kind == 1:
        os.kill(os.getpid(), 9)
    if kind == 2:  # its shim is killed
        os.kill(os.getppid(), 9)
        time.sleep(60)
    if kind == 3:  # something stays behind in a session of its own
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        sys.exit(1)
    print("x" * 2_000_000, flush=True)
    sys.exit(0)
ship()
"""

LEAVE_ALONE = ("wal", "shm", "journal")
"""Endings of files that come and go beside a database."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the daemon and its repository held at one moment."""

    settled: int
    descriptors: int
    threads: int
    memory_mib: float
    zombies: int
    worktrees: int
    branches: int
    refs: int
    files: int
    files_a_dispatch: float


@dataclass(slots=True)
class Figures:
    """What a soak came to."""

    seed: int
    dispatches: int = 0
    faults: int = 0
    restarts: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)

    def halves(self) -> Iterator[tuple[str, float, float, float]]:
        """Yield each figure's mean in the first and in the second half, and its last value.

        What is gathered while everything warms up, a tenth, counts in neither.
        """
        settled = self.samples[len(self.samples) // 10 :]
        middle = len(settled) // 2
        for name in Sample.__dataclass_fields__:
            values = [float(getattr(sample, name)) for sample in settled]
            yield name, mean(values[:middle]), mean(values[middle:]), values[-1]

    def grown(self) -> list[str]:
        """Return what has grown, in words; nothing when all is well."""
        allowed = {
            "descriptors": (1.1, 8.0),
            "threads": (1.1, 6.0),
            "memory_mib": (1.1, 12.0),
            "zombies": (1.0, 1.0),
            "worktrees": (1.1, 4.0),
            "branches": (1.1, 4.0),
            "refs": (1.1, 4.0),
            "files": (1.0, 4.0),
            "files_a_dispatch": (1.05, 1.0),
        }
        told = []
        for name, first, second, last in self.halves():
            if name in allowed:
                factor, more = allowed[name]
                # Threads come when much is to be done at once, and those of a leak never go.
                found = min(second, last) if name == "threads" else second
                if found > first * factor + more:
                    told.append(f"{name} grew from {first:.1f} to {second:.1f}")
        return told

    def table(self) -> str:
        """Return the figures for people."""
        lines = [
            f"seed {self.seed}: {self.dispatches} dispatches, {self.faults} with faults,"
            f" {self.restarts} restarts, {self.seconds:.0f} s, {self.outcomes}",
            f"{'':18}{'first half':>12}{'second half':>12}{'last':>10}",
        ]
        lines += [
            f"{name:18}{first:12.1f}{second:12.1f}{last:10.1f}"
            for name, first, second, last in self.halves()
        ]
        return "\n".join(lines)


def soak(
    folder: Path, dispatches: int, *, seed: int, slots: int = 8, restarts: int = 0
) -> tuple[Trial, Figures]:
    """Settle so many dispatches; return the project, settled, and what was measured."""
    ids = [f"SOAK-{number:05}" for number in range(dispatches - 1)]
    trial = Trial.begin(folder, agent=AGENT, slots=slots)
    trial.write_backlog(gaps(*ids, BYSTANDER))
    env = {**trial.env, "PROJECT_SEED": str(seed), "PROJECT_FAULTS": "0.1"}
    figures, chance, began = Figures(seed), random.Random(seed), time.monotonic()
    pauses = 0
    due = sorted(chance.sample(range(dispatches // 10, dispatches * 9 // 10), restarts))
    daemon = trial.start("--once", **env)
    while daemon.poll() is None:
        settled = trial.log().count('"dispatch.settled"')
        if (blown := trial.log().count('"event": "dispatching.paused"')) > pauses:
            # By a row of failures, of which there are enough here.
            pauses = blown
            trial.program("resume")
        if due and settled >= due[0]:
            due.pop(0)
            figures.restarts += 1
            daemon.send_signal(chance.choice((signal.SIGUSR1, signal.SIGKILL)))
            daemon.wait(60)
            daemon = trial.start("--once", **env)
        trial.keep_origin()
        sample = _sample(trial, daemon, settled)
        if sample is not None:
            figures.samples.append(sample)
        time.sleep(0.5)
        if daemon.poll() is not None and _has_more(trial, dispatches):
            trial.program("resume")  # a row of failures had paused dispatching
            daemon = trial.start("--once", **env)
    assert daemon.returncode in (0, 1), trial.log()[-4000:]
    trial.settle(patience_s=600)
    figures.seconds = time.monotonic() - began
    figures.faults = len(trial.noted("faults"))
    told = trial.json("history", "--limit", "100000")["dispatches"]
    figures.dispatches = len(told)
    for one in told:
        figures.outcomes[one["outcome"]] = figures.outcomes.get(one["outcome"], 0) + 1
    return trial, figures


def _has_more(trial: Trial, dispatches: int) -> bool:
    # The log may lack the line of one that was settled when its daemon was killed.
    return len(trial.json("history", "--limit", "100000")["dispatches"]) < dispatches


def _sample(trial: Trial, daemon: subprocess.Popen[bytes], settled: int) -> Sample | None:
    """Look at everything that might grow; `None` when the daemon has not begun, or has ended."""
    try:
        process = psutil.Process(daemon.pid)
        zombies = sum(1 for child in process.children() if child.status() == psutil.STATUS_ZOMBIE)
        descriptors, threads = process.num_fds(), process.num_threads()
        memory_mib = process.memory_info().rss / 2**20
    except psutil.Error:
        return None
    refs = trial.git("for-each-ref", "--format=%(refname)").split()
    ours = [ref for ref in refs if not ref.startswith("refs/remotes/")]  # those are the forge's
    if not trial.state.is_dir():
        return None  # it has not begun yet
    folders = [one for one in (trial.state / "d").glob("*") if one.is_dir()]
    kept = sum(1 for one in folders for _ in one.rglob("*"))
    beside = [
        one for one in trial.state.iterdir() if not one.name.endswith(LEAVE_ALONE) and one.is_file()
    ]
    return Sample(
        settled=settled,
        descriptors=descriptors,
        threads=threads,
        memory_mib=memory_mib,
        zombies=zombies,
        worktrees=len([*(trial.root / ".claude" / "worktrees").glob("*")]),
        branches=sum(ref.startswith("refs/heads/") for ref in ours),
        refs=len(ours),
        files=len(beside),
        files_a_dispatch=kept / max(len(folders), 1),
    )


def main() -> int:
    """Soak, print the figures, and say what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dispatches", type=int, default=2000)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chump-soak-") as folder:
        trial, figures = soak(
            Path(folder) / "soak", given.dispatches, seed=given.seed, restarts=given.restarts
        )
        try:
            print(figures.table(), flush=True)
            trial.check()
            grown = figures.grown()
        finally:
            trial.clean()
    for line in grown:
        print(line, file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
