"""Projects whose agents leave evidence behind, and the promises checked on it after every fault.

An agent takes a lock for its gap, signs for its start, and notes each commit and each file it has
made. What it notes lies outside of everything the program could touch. `Trial.check` compares it
with what is left when all is over (promises I1 to I4, I6 and I7).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from tests.e2e.projects import Project, gaps

SECRET = "sk-trial-0123456789abcdefghijklmnop"
"""Handed to every agent in `PROJECT_API_KEY`; each of them prints it, and nothing may keep it."""

BYSTANDER = "OTHER-1"
"""A gap that no fault is aimed at: it has to ship whatever happens to the others (I6)."""

EVIDENCE = """\
import fcntl, json
here = os.environ["PROJECT_EVIDENCE"]
dispatch = os.environ["CHUMP_DISPATCH_ID"]
def sign(book, *words):
    with open(os.path.join(here, book), "a") as file:
        file.write(" ".join(words) + "\\n")
held = open(os.path.join(here, gap + ".lock"), "w")  # inherited by whatever it starts
try:
    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sign("doubled", gap, dispatch)
os.set_inheritable(held.fileno(), True)
sign("starts", gap, dispatch, str(os.getpid()))
print("my key is", os.environ["PROJECT_API_KEY"], flush=True)
print("WARN: my key is", os.environ["PROJECT_API_KEY"], file=sys.stderr, flush=True)
def commit(name, text):
    with open(name, "w") as file:
        file.write(text)
    git("add", "--", name)
    git("commit", "-q", "-m", "work on " + gap)
    oid = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    sign("commits", gap, oid.stdout.strip())
def leave(name, text):
    with open(name, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sign("files", gap, dispatch, name, text)
"""
"""Put before each agent's own words; `ship`, `git`, `gap` and `branch` come from the project's."""


class Trial(Project):
    """A project on which one fault is tried."""

    @property
    def evidence(self) -> Path:
        """Where agents leave what they did."""
        return self.folder / "evidence"

    @property
    def env(self) -> dict[str, str]:
        """What the program is to be run with."""
        return {"PROJECT_EVIDENCE": str(self.evidence), "PROJECT_API_KEY": SECRET}

    @classmethod
    def begin(
        cls, folder: Path, *ids: str, agent: str = "ship()", slots: int = 2, more: str = ""
    ) -> Trial:
        """Make a project with these gaps and the bystander; `agent` says what all of them do."""
        trial = cls.make(folder, gaps(*ids, BYSTANDER), EVIDENCE + agent, slots=slots, more=more)
        assert isinstance(trial, Trial)
        trial.evidence.mkdir()
        return trial

    def settle(self, *args: str, patience_s: float = 120.0) -> None:
        """Run the program until nothing is left to do, as an operator would the next morning."""
        done = subprocess.run(
            [sys.executable, "-m", "chump_orchestrator", "run", "--once", *args],
            cwd=self.root,
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
        with (self.folder / "daemon.log").open("a") as log:
            log.write(done.stderr)
        assert done.returncode in (0, 1), done.stderr

    def noted(self, book: str) -> list[list[str]]:
        """Return what agents have signed in one of their books, line by line."""
        path = self.evidence / book
        if not path.exists():
            return []
        return [line.split(" ") for line in path.read_text().splitlines()]

    def starts(self, gap: str = "") -> list[str]:
        """Return the dispatches whose agents have begun, in their order."""
        return [line[1] for line in self.noted("starts") if gap in ("", line[0])]

    def check(self, *, bystander: bool = True) -> None:
        """Hold what is left against the promises, once no daemon runs any more."""
        broken = [*self._objections(bystander=bystander)]
        assert not broken, "\n".join([*broken, "", "the log:", self.log()[-6000:]])

    def log(self) -> str:
        """Return what all daemons have logged so far."""
        path = self.folder / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _objections(self, *, bystander: bool) -> Iterator[str]:
        if doubled := self.noted("doubled"):
            yield f"I1: two agents of one gap at a time: {doubled}"
        yield from self._unsettled()
        if left := self.processes():
            yield f"I3: processes of agents live: {left}"
        yield from self._held_locks()
        yield from self._lost_work()
        if bystander and self.outcomes().get(BYSTANDER) != "shipped":
            yield f"I6: {BYSTANDER} is {self.outcomes().get(BYSTANDER)}"
        yield from self._secrets()
        if leases := self.left()["leases"]:
            yield f"leases are left: {leases}"
        log = self.log()
        if (at := log.find("Traceback")) >= 0:
            yield f"there is a traceback in the log: {log[max(at - 500, 0) : at + 4000]}"

    def _unsettled(self) -> Iterator[str]:
        told = self.json("history", "--limit", "10000")["dispatches"]
        outcomes = {one["id"]: one["outcome"] for one in told}
        for dispatch in self.starts():
            if dispatch not in outcomes:
                yield f"I2: {dispatch} started an agent and has no outcome"
        reflected = self._counted("sessions/chump_memory.db", "chump_reflections", "episode_id")
        for dispatch in outcomes.keys() | reflected.keys():
            if reflected[dispatch] != 1 or dispatch not in outcomes:
                yield f"I2: {dispatch} has {reflected[dispatch]} reflections"
        routed = self._counted(".chump/state.db", "routing_outcomes", "gap_id")
        for gap, settled in Counter(one["gap"] for one in told).items():
            if routed[gap] != settled:
                yield f"I2: {gap} has {settled} outcomes and {routed[gap]} routing rows"

    def _counted(self, database: str, table: str, column: str) -> Counter[str]:
        """Count rows of a shared database by one of their columns; none before it is there."""
        path = self.root / database
        if not path.exists():
            return Counter()
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return Counter(row[0] for row in connection.execute(f"SELECT {column} FROM {table}"))

    def _held_locks(self) -> Iterator[str]:
        for path in self.state.glob("d/*/lock"):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield f"I3: somebody holds {path}"
            finally:
                os.close(descriptor)

    def _lost_work(self) -> Iterator[str]:
        for gap, oid in self.noted("commits"):
            if not self._is_kept(oid):
                yield f"I4: commit {oid} of {gap} is in no branch, remote branch or snapshot"
        for gap, dispatch, name, text in self.noted("files"):
            if not self._has_file(dispatch, name, text):
                yield f"I4: {name} of {gap} ({dispatch}) is in no worktree and no snapshot"

    def _is_kept(self, oid: str) -> bool:
        for at in (self.root, self.origin):
            found = subprocess.run(
                ["git", "for-each-ref", "--contains", oid], cwd=at, capture_output=True, check=False
            )
            if found.returncode == 0 and found.stdout.strip():
                return True
        return False

    def _has_file(self, dispatch: str, name: str, text: str) -> bool:
        for path in (self.root / ".claude" / "worktrees").glob(f"*/{name}"):
            if path.read_text() == text:
                return True
        refs = self.git("for-each-ref", "--format=%(refname)", "refs/chump/salvage").split()
        for ref in (f"refs/chump/salvage/{dispatch}", *refs):
            found = subprocess.run(
                ["git", "show", f"{ref}:{name}"], cwd=self.root, capture_output=True, check=False
            )
            if found.returncode == 0 and found.stdout.decode() == text:
                return True
        return False

    def _secrets(self) -> Iterator[str]:
        where = (self.root / ".chump", self.root / "sessions", self.root / ".chump-locks")
        files = [file for folder in where for file in folder.rglob("*") if file.is_file()]
        for file in (*files, self.folder / "daemon.log"):
            if file.is_file() and SECRET.encode() in file.read_bytes():
                yield f"I7: the secret stands in {file}"


def wait_until(claim: Callable[[], object], patience_s: float = 60.0) -> None:
    """Wait until `claim()` holds."""
    until = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.02)
