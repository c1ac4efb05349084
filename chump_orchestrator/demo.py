"""A night's work in half a minute: a throw-away repository, drained by the real daemon.

Git, processes, shims, leases and databases are the real ones; only the agent is a script. It
does what an agent would: commits in its worktree, pushes its branch, and has it merged.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from chump_orchestrator import config, throwaway, wiring
from chump_orchestrator.story import told

AGENT = '''\
"""The demonstration's agent: one small change, committed, pushed, and merged as a forge would."""
import os, subprocess, sys, time

gap, branch = sys.argv[1], sys.argv[2]
brief = sys.stdin.read()
assert f"working on gap {gap}" in brief, "the brief is not about this gap"

def git(*args):
    # Both look at every worktree, and fail when one of them vanishes, or commits, at that moment.
    for _ in range(10 if args[0] in ("checkout", "fetch") else 0):
        if subprocess.run(["git", *args], capture_output=True).returncode == 0:
            return ""
        time.sleep(0.05)
    return subprocess.run(["git", *args], check=True, capture_output=True, text=True).stdout.strip()

if gap == "FAIL-1":
    print("WARN: this one was made to fail", file=sys.stderr)
    sys.exit(7)
if gap == "SLOW-1":
    print("WARN: still thinking", file=sys.stderr, flush=True)
    time.sleep(3600)
time.sleep(0.5)
name = gap.lower().replace("-", "_") + ".txt"
with open(name, "w", encoding="utf-8") as file:
    file.write(f"{gap} is done\\n")
git("add", "--", name)
git("commit", "-q", "-m", f"Do {gap}")
git("push", "-q", "origin", f"HEAD:refs/heads/{branch}")
for attempt in range(20):
    git("fetch", "-q", "--refmap=", "origin", "main")  # origin/main is everyone's: leave it
    way = ("merge", "squash", "rebase")[sum(map(ord, gap)) % 3]
    if way == "rebase":
        git("checkout", "-q", "--detach", branch)
        git("rebase", "-q", "FETCH_HEAD")
    else:
        git("checkout", "-q", "--detach", "FETCH_HEAD")
        if way == "merge":
            git("merge", "-q", "--no-ff", "-m", f"Merge {branch}", branch)
        else:
            git("merge", "-q", "--squash", branch)
            git("commit", "-q", "-m", f"{gap}, squashed")
    try:
        git("push", "-q", "origin", "HEAD:refs/heads/main")
        break
    except subprocess.CalledProcessError:
        time.sleep(0.2)  # somebody else was merged first: begin from there
    finally:
        git("checkout", "-q", branch)
else:
    sys.exit("ERROR: could not be merged")
print(f"{gap} was merged by {way}")
'''

BACKLOG = """\
meta: {purpose: demonstration}
gaps:
- {id: DEMO-1, title: Lay the foundation, priority: P0, effort: xs, status: open}
- {id: DEMO-2, title: Build on it, priority: P1, effort: s, status: open, depends_on: [DEMO-1]}
- {id: DEMO-3, title: Put the roof on, priority: P2, effort: s, status: open, depends_on: [DEMO-2]}
- {id: DOCS-1, title: Write it down, priority: P1, effort: xs, status: open}
- {id: TEST-1, title: Try it out, priority: P2, effort: m, status: open, depends_on: [DOCS-1]}
- {id: FAIL-1, title: Made to fail, priority: P1, effort: s, status: open}
- {id: SLOW-1, title: Made to overrun, priority: P0, effort: s, status: open, deadline: 2s}
- {id: LATER-1, title: Not for tonight, priority: P4, effort: s, status: open}
"""

SETTINGS = """\
max_parallel = 3
[deadlines]
grace = "2s"
[backend]
use = "custom"
[backend.custom]
argv = {argv}
[pulls]
use = "git"
interval = "1s"
deadline = "40s"
[retry]
max_attempts = 1
[worktrees]
min_free = "0GiB"
"""

EXPECTED = {
    "DEMO-1": "shipped",
    "DEMO-2": "shipped",
    "DEMO-3": "shipped",
    "DOCS-1": "shipped",
    "TEST-1": "shipped",
    "FAIL-1": "killed: exit-code",
    "SLOW-1": "killed: deadline",
}


INTERRUPTED = 130
"""The exit code after Ctrl-C (behaviour C3)."""


@dataclass(frozen=True, slots=True)
class Account:
    """What is true after the run, read back from where it lies."""

    outcomes: Mapping[str, str]
    reflections: int
    routing_rows: int
    merged: tuple[str, ...]
    worktrees: tuple[str, ...]
    leases: tuple[str, ...]
    processes: tuple[int, ...]

    @property
    def objections(self) -> tuple[str, ...]:
        """Return what is not as it should be."""
        shipped = tuple(sorted(g for g, o in EXPECTED.items() if o == "shipped"))
        claims = {
            f"outcomes: {dict(self.outcomes)}": dict(self.outcomes) == EXPECTED,
            f"reflections: {self.reflections}": self.reflections == len(EXPECTED),
            f"routing rows: {self.routing_rows}": self.routing_rows == len(EXPECTED),
            f"merged on origin: {self.merged}": self.merged == shipped,
            f"worktrees left: {self.worktrees}": not self.worktrees,
            f"leases left: {self.leases}": not self.leases,
            f"processes left: {self.processes}": not self.processes,
        }
        return tuple(what for what, holds in claims.items() if not holds)


async def demo(say: Callable[[str], None], *, keep: bool = False) -> int:
    """Run the demonstration and say what happens; 0 when everything went as it should.

    With `keep` the folder stays for looking around; it stays anyway when something went wrong.
    Returns 130, and says nothing of how it went, when it was interrupted.
    """
    began = time.monotonic()
    root, loaded = await _prepare()
    folder = root.parent
    is_wanted = keep
    place = str(folder) if keep else "a folder that is deleted at the end (--keep keeps it)"
    say(f"A repository with a bare origin and 8 gaps, in {place}")

    def on_event(event: str, fields: Mapping[str, object]) -> None:
        if line := told(event, fields):
            say(f"{time.monotonic() - began:5.1f} s  {line}")

    try:
        run = await wiring.run(root, loaded, wiring.RunOptions(once=True, on_event=on_event))
        if run.interrupted:
            say("Interrupted; its agents were stopped")
            return INTERRUPTED
        account = await _account(root, folder / "origin.git", loaded)
        is_wanted = keep or bool(account.objections)
        _print(say, account, root if is_wanted else None, time.monotonic() - began)
        return 1 if account.objections else 0
    except Exception:
        is_wanted = True
        raise
    finally:
        if is_wanted:
            say(f"Everything lies in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


async def _prepare() -> tuple[Path, config.Loaded]:
    root, _ = await throwaway.repository("demo", BACKLOG, "")
    agent = root.parent / "agent.py"
    agent.write_text(AGENT, "utf-8")
    argv = json.dumps([sys.executable, str(agent), "{gap}", "{branch}"])
    settings = root / ".chump" / "orchestrator.toml"
    settings.write_text(SETTINGS.format(argv=argv), "utf-8")
    return root, throwaway.load(root)


async def _account(root: Path, origin: Path, loaded: config.Loaded) -> Account:
    async with wiring.open_ledger(root, loaded, readonly=True) as ledger:
        records = await ledger.latest(100)
    outcomes = {}
    for record in records:
        outcome = record.outcome
        if outcome is not None:
            cause = f": {outcome.cause}" if outcome.cause else ""
            outcomes[record.dispatch.gap.id] = f"{outcome.kind}{cause}"
    settings = loaded.settings
    subjects = await throwaway.git(
        root.parent, "--git-dir", str(origin), "ls-tree", "--name-only", "main"
    )
    merged = {line[:-4].replace("_", "-").upper() for line in subjects.split() if "_" in line}
    base, leases = root / settings.worktrees.base, root / settings.leases.dir
    return Account(
        outcomes=dict(sorted(outcomes.items(), key=lambda item: list(EXPECTED).index(item[0]))),
        reflections=_count(root / settings.journal.reflections, "chump_reflections"),
        routing_rows=_count(root / settings.journal.routing, "routing_outcomes"),
        merged=tuple(sorted(merged)),
        worktrees=tuple(p.name for p in base.glob("*") if not p.name.startswith(".")),
        leases=tuple(p.name for p in leases.glob("*.json")),
        processes=_left({record.dispatch.id for record in records}),
    )


def _count(database: Path, table: str) -> int:
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - our own constant
    connection.close()
    return int(count)


def _left(dispatches: set[str]) -> tuple[int, ...]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CHUMP_DISPATCH_ID") in dispatches:
                found.append(process.pid)
        except psutil.Error:
            continue
    return tuple(found)


def _print(say: Callable[[str], None], account: Account, root: Path | None, took_s: float) -> None:
    """Say what it came to; `root` is where that can be looked at, `None` when nowhere."""

    def of(file: str) -> str:
        return f" in {root / file}" if root else ""

    say("")
    say("The account, read back from where it lies:")
    for gap, outcome in account.outcomes.items():
        say(f"  {gap:<8} {outcome}")
    say("  LATER-1  not picked: its priority is P4")
    say(f"  merged on origin/main: {', '.join(account.merged)}")
    say(f"  reflections: {account.reflections}{of('sessions/chump_memory.db')}")
    say(f"  routing rows: {account.routing_rows}{of('.chump/state.db')}")
    left = len(account.worktrees), len(account.leases), len(account.processes)
    say("  left behind: {} worktrees, {} leases, {} processes".format(*left))
    for objection in account.objections:
        say(f"  NOT AS IT SHOULD BE: {objection}")
    say(
        f"{'Something went wrong' if account.objections else 'All as it should be'}, {took_s:.1f} s"
    )
