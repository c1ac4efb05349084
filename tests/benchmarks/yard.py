"""Repositories to measure in, small or large, with agents that are a few lines of shell.

The forge is a hook of the bare origin that merges whatever is pushed, where that is wanted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.projects import Project, gaps

FILES = 8488
"""What a real repository has."""

SETTINGS = """\
max_parallel = {slots}
max_open_pulls = 1000
{head}
[backend]
use = "custom"
[backend.custom]
argv = {argv}
pass_env = ["PROJECT_*"]
[pulls]
use = "git"
interval = "{interval}"
[worktrees]
min_free = "0GiB"
prepared = {prepared}
{more}
"""

BEGIN = """\
gap=$1 branch=$2
date +%s%N > "$PROJECT_TIMES/$gap.first"
"""

PUSH = """\
echo "$gap" > "$gap.txt"
git add -- "$gap.txt"
git commit -q -m "$gap"
git push -q origin "HEAD:refs/heads/$branch" 2>/dev/null
"""
"""What an agent does to ship: with the forge's hook, its request is merged after that."""

END = """
date +%s%N > "$PROJECT_TIMES/$gap.last"
"""

HOOK = """\
#!/bin/sh
export GIT_AUTHOR_NAME=Forge GIT_AUTHOR_EMAIL=forge@example.org
export GIT_COMMITTER_NAME=Forge GIT_COMMITTER_EMAIL=forge@example.org
while read -r old new ref; do
    [ "$ref" = refs/heads/main ] && continue
    while :; do
        main=$(git rev-parse refs/heads/main)
        tree=$(git merge-tree --write-tree "$main" "$new") || exit 0
        merge=$(git commit-tree "$tree" -p "$main" -p "$new" -m "Merge $ref")
        git update-ref refs/heads/main "$merge" "$main" 2>/dev/null && break
    done
done
"""

PATIENCE_S = 120.0


def grow(root: Path, files: int = FILES, *, seed: int = 7) -> None:
    """Add so many files of some kilobytes to the branch `main` of a work tree."""
    chance = random.Random(seed)
    text = "".join(f"line {number} of a file that somebody wrote\n" for number in range(200))
    parts = [
        b"commit refs/heads/main\ncommitter T <t@example.org> 1777300000 +0000\n"
        b"data 4\nGrow\nfrom refs/heads/main^0\n"
    ]
    for number in range(files):
        body = f"{number}\n{text[: chance.randint(200, 7000)]}".encode()
        path = f"src/part{number % 97}/module{number % 13}/file{number}.txt"
        parts.append(f"M 100644 inline {path}\ndata {len(body)}\n".encode() + body + b"\n")
    subprocess.run(["git", "fast-import", "--quiet"], cwd=root, input=b"".join(parts), check=True)
    subprocess.run(["git", "reset", "-q", "--hard", "main"], cwd=root, check=True)


class Yard(Project):
    """A project whose agents are shell scripts, and whose daemon is watched."""

    @classmethod
    def lay_out(
        cls,
        folder: Path,
        ids: list[str],
        agent: str,
        *,
        slots: int = 1,
        prepared: int = 2,
        interval: str = "1s",
        files: int = 0,
        merges: bool = False,
        deadline: str = "",
        more: str = "",
        head: str = "",
    ) -> Yard:
        """Make it; `agent` is shell, between what notes its first and its last moment."""
        extra = {"deadline": deadline} if deadline else {}
        yard = cls.make(folder, gaps(*ids, **extra))
        assert isinstance(yard, Yard)
        script = folder / "agent.sh"
        script.write_text(BEGIN + agent + END)
        argv = json.dumps(["/bin/sh", str(script), "{gap}", "{branch}"])
        (yard.root / ".chump" / "orchestrator.toml").write_text(
            SETTINGS.format(
                slots=slots, argv=argv, interval=interval, prepared=prepared, more=more, head=head
            )
        )
        if files:
            grow(yard.root, files)
            yard.git("push", "-q", "origin", "main")
        if merges:
            hook = yard.origin / "hooks" / "post-receive"
            hook.parent.mkdir(exist_ok=True)
            hook.write_text(HOOK)
            hook.chmod(0o755)
        yard.times.mkdir()
        return yard

    @property
    def times(self) -> Path:
        """Where agents note their first and their last moment."""
        return self.folder / "times"

    @property
    def events(self) -> Path:
        """Where the daemon's events stand."""
        return self.folder / "events.jsonl"

    def drive(self, *args: str) -> psutil.Process:
        """Start `run`, watched."""
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.driven", str(self.events), "run", *args],
                cwd=self.root,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "PROJECT_TIMES": str(self.times),
                },
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return psutil.Process(self.daemon.pid)

    def ask(self, word: str) -> None:
        """Say a line to the watcher."""
        assert self.daemon is not None
        assert self.daemon.stdin is not None
        self.daemon.stdin.write(f"{word}\n".encode())
        self.daemon.stdin.flush()

    def told(self, event: str) -> list[dict[str, Any]]:
        """Return all events of that name so far."""
        if not self.events.exists():
            return []
        lines = self.events.read_text().splitlines()
        return [one for one in map(json.loads, lines) if one["event"] == event]

    def await_events(self, event: str, count: int, patience_s: float = PATIENCE_S) -> None:
        """Wait until so many events of that name have come."""
        until = time.monotonic() + patience_s
        while len(self.told(event)) < count:
            if time.monotonic() > until or self.has_ended():
                log = (self.folder / "daemon.log").read_text()[-3000:]
                raise AssertionError(f"{len(self.told(event))} of {count} {event}; {log}")
            time.sleep(0.1)

    def has_ended(self) -> bool:
        """Whether the daemon has."""
        return self.daemon is None or self.daemon.poll() is not None

    def lag_p99_ms(self, seconds: float) -> float:
        """Have the daemon's loop watched for so long, and return how late it was."""
        before = len(self.told("lag"))
        self.ask("lag")
        time.sleep(seconds)
        self.ask("lag?")
        self.await_events("lag", before + 1)
        return float(self.told("lag")[-1]["p99_ms"])

    def at_ms(self, gap: str, which: str) -> float:
        """Return an agent's first or last moment, in milliseconds since the epoch."""
        return int((self.times / f"{gap}.{which}").read_text()) / 1e6

    def stop(self) -> None:
        """End the daemon and all its agents."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.daemon.wait(60)
        self.clean()


@contextmanager
def working(yard: Yard, *args: str) -> Iterator[psutil.Process]:
    """Give the running daemon; nothing of it is left afterwards."""
    try:
        yield yard.drive(*args)
    finally:
        yard.stop()


def cpu_share(process: psutil.Process, seconds: float) -> float:
    """Return how much of one core a process takes, in percent."""
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began) * 100
