"""A project with a bare origin, a backlog and a scripted agent, worked on by the real program."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0

PRELUDE = """\
import os, signal, subprocess, sys, time
gap, branch = sys.argv[1], sys.argv[2]
def git(*args):
    # Both look at every worktree, and fail when one of them vanishes, or commits, at that moment.
    for _ in range(10 if args[0] in ("checkout", "fetch") else 0):
        if subprocess.run(["git", *args], stdin=subprocess.DEVNULL).returncode == 0:
            return
        time.sleep(0.05)
    subprocess.run(["git", *args], check=True, stdin=subprocess.DEVNULL)
def ship(merge=True):
    name = gap.lower() + ".txt"
    with open(name, "w") as file:
        file.write(gap)
    git("add", "--", name)
    git("commit", "-q", "-m", gap)
    git("push", "-q", "origin", "HEAD:refs/heads/" + branch)
    for _ in range(300 if merge else 0):
        git("fetch", "-q", "--refmap=", "origin", "main")  # origin/main is everyone's: leave it
        git("checkout", "-q", "--detach", branch)
        git("rebase", "-q", "FETCH_HEAD")
        done = subprocess.run(["git", "push", "-q", "origin", "HEAD:refs/heads/main"],
                              stderr=subprocess.DEVNULL)
        git("checkout", "-q", branch)
        if done.returncode == 0:
            break
        time.sleep(0.05)
"""

SETTINGS = """\
max_parallel = {slots}
[deadlines]
grace = "2s"
[backend]
use = "custom"
[backend.custom]
argv = {argv}
pass_env = ["PROJECT_*"]
[pulls]
use = "git"
interval = "1s"
[retry]
max_attempts = 1
[worktrees]
min_free = "0GiB"
"""


class Project:
    """One repository, its origin beside it, and what the program says about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "project"
        self.origin = folder / "origin.git"
        self.state = self.root / ".chump" / "orchestrator"
        self.daemon: subprocess.Popen[bytes] | None = None

    @classmethod
    def make(
        cls, folder: Path, gaps: str, agent: str = "ship()", *, slots: int = 2, more: str = ""
    ) -> Project:
        """Make a project with these entries of the backlog and this agent."""
        project = cls(folder)
        (project.root / "docs").mkdir(parents=True)
        (project.root / ".chump").mkdir()
        project.write_backlog(gaps)
        script = folder / "agent.py"
        script.write_text(PRELUDE + agent + "\n")
        argv = json.dumps([sys.executable, str(script), "{gap}", "{branch}"])
        settings = SETTINGS.format(slots=slots, argv=argv) + more
        (project.root / ".chump" / "orchestrator.toml").write_text(settings)
        project.git("init", "-q", "--bare", "-b", "main", str(project.origin), at=folder)
        project.git("init", "-q", "-b", "main", str(project.root), at=folder)
        project.git("add", "docs")
        project.git("-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "Begin")
        # What an agent's push begins in the background would be ended with the agent.
        project.git("config", "receive.autogc", "false", at=project.origin)
        project.git("remote", "add", "origin", str(project.origin))
        project.git("push", "-qu", "origin", "main")
        project.git("remote", "set-head", "origin", "main")
        return project

    def keep_origin(self) -> None:
        """Have the origin packed if much has gathered, as whoever serves it would."""
        self.git("maintenance", "run", "--auto", "--quiet", at=self.origin)

    def write_backlog(self, gaps: str) -> None:
        """Write the backlog; `gaps` is a list in YAML."""
        (self.root / "docs" / "gaps.yaml").write_text(f"gaps:\n{gaps}")

    def git(self, *args: str, at: Path | None = None) -> str:
        """Run git in the project."""
        done = subprocess.run(
            ["git", *args], cwd=at or self.root, check=True, capture_output=True, text=True
        )
        return done.stdout

    def program(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the program to its end."""
        return subprocess.run(
            [sys.executable, "-m", "chump_orchestrator", *args],
            cwd=self.root,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        """Start `run` in the background."""
        log = (self.folder / "daemon.log").open("ab")
        self.daemon = subprocess.Popen(
            [sys.executable, "-m", "chump_orchestrator", "run", *args],
            cwd=self.root,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        log.close()
        return self.daemon

    def json(self, *args: str) -> Any:
        """Return what a command prints with `--json`."""
        done = self.program(*args, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def outcomes(self) -> dict[str, str]:
        """Return the latest outcome of each gap, as `history` tells it."""
        told = self.json("history", "--limit", "500")["dispatches"]
        return {one["gap"]: one["outcome"] for one in reversed(told)}

    def reflections(self) -> list[str]:
        """Return what the shared journal says of each dispatch, oldest first; none before it is."""
        database = self.root / "sessions" / "chump_memory.db"
        if not database.exists():
            return []
        with closing(sqlite3.connect(database)) as connection:
            tables = "SELECT count(*) FROM sqlite_master WHERE name = 'chump_reflections'"
            if connection.execute(tables).fetchone() == (0,):
                return []
            rows = connection.execute(
                "SELECT task_id || ' ' || observed_outcome FROM chump_reflections ORDER BY id"
            ).fetchall()
        return [row[0] for row in rows]

    def left(self) -> Mapping[str, list[str]]:
        """Return what the program has left behind: worktrees, leases, processes."""
        base, leases = self.root / ".claude" / "worktrees", self.root / ".chump-locks"
        return {
            "worktrees": [p.name for p in base.glob("*") if not p.name.startswith(".")],
            "leases": [p.name for p in leases.glob("*.json")],
            "processes": [str(pid) for pid in self.processes()],
        }

    def processes(self, marker: str = "") -> list[int]:
        """Return the living processes of this project's agents."""
        found = []
        wanted = f"CHUMP_DISPATCH_ID={marker}".encode()
        here = str(self.folder).encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            if wanted in environ and here in environ:
                found.append(int(entry.name))
        return found

    def eventually(self, claim: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Wait until a claim holds and return its value."""
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            if value := claim():
                return value
            time.sleep(0.1)
        log = self.folder / "daemon.log"
        raise AssertionError(f"not in time; the log:\n{log.read_text() if log.exists() else ''}")

    def clean(self) -> None:
        """End what still runs."""
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()
            self.daemon.wait()
        for running in self.state.glob("d/*/running.json"):
            told = json.loads(running.read_text())
            for pid in (told["shim_pid"], told["pid"]):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue


def gaps(*ids: str, **more: str) -> str:
    """Return a list of open P1 gaps, each with the same further keys."""
    extra = "".join(f", {key}: {value}" for key, value in more.items())
    return "".join(
        f"- {{id: {one}, title: {one}, priority: P1, effort: s, status: open{extra}}}\n"
        for one in ids
    )


EMPTY: dict[str, list[str]] = {"worktrees": [], "leases": [], "processes": []}
"""What must be left behind: nothing."""


Make = Callable[..., Project]
"""Makes a project and sees to it that nothing of it lives on; a fixture gives one."""
