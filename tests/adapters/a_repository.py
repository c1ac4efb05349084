"""A real repository with a bare origin beside it, and what agents, people and forges do there."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from chump_orchestrator.core.records import Watch

IDENTITY = {
    f"GIT_{role}_{part}": text
    for role in ("AUTHOR", "COMMITTER")
    for part, text in (("NAME", "Somebody"), ("EMAIL", "somebody@example.org"))
}


class HandClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.instant = datetime.now(UTC)
        self.seconds = 1000.0

    def now(self) -> datetime:
        return self.instant

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, time: timedelta) -> None:
        self.instant += time
        self.seconds += time.total_seconds()


class ARepository:
    """`root` is a clone of the bare `origin`, with branch `main` of one commit in both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = folder / "origin.git"
        self.root = folder / "repo"
        self.env = {name: os.environ[name] for name in ("PATH", "HOME")} | {
            name: text for name, text in os.environ.items() if name.startswith("GIT_CONFIG_")
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.git("init", "-q", "--bare", "-b", "main", str(self.origin), at=folder)
        self.git("clone", "-q", str(self.origin), str(self.root), at=folder)
        self.git("symbolic-ref", "HEAD", "refs/heads/main")
        self.base = self.commit(self.root, "README", "hello\n")
        self.git("push", "-q", "origin", "main")
        self.git("remote", "set-head", "origin", "main")
        self.clock = HandClock()
        self.since = self.clock.now()

    def git(
        self, *args: str, at: Path | None = None, when: datetime | None = None, by: str = "Somebody"
    ) -> str:
        """Run git as a person would, and return what it says."""
        dates = {}
        if when is not None:
            dates = {f"GIT_{role}_DATE": when.isoformat() for role in ("AUTHOR", "COMMITTER")}
        done = subprocess.run(
            ["git", *args],
            cwd=at or self.root,
            env=self.env | IDENTITY | {"GIT_COMMITTER_NAME": by} | dates,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"git {args}: {done.stderr}"
        return done.stdout.strip()

    def commit(
        self, at: Path, name: str, text: str, *, when: datetime | None = None, add: bool = False
    ) -> str:
        """Write a file, or `add` to its end, commit it, and return the commit."""
        path = at / name
        path.write_text((path.read_text("utf-8") if add else "") + text, "utf-8")
        self.git("add", name, at=at)
        self.git("commit", "-q", "-m", f"change {name}", at=at, when=when)
        return self.git("rev-parse", "HEAD", at=at)

    def worktree(self, branch: str, base: str = "") -> Path:
        """Make a worktree as a dispatch has one."""
        path = self.folder / "worktrees" / branch.replace("/", "-")
        self.git("worktree", "add", "-q", "--no-track", "-b", branch, str(path), base or self.base)
        return path

    def pushed(self, branch: str, *names: str) -> Path:
        """Make a worktree with a commit of each file in `names`, and push it."""
        at = self.worktree(branch)
        for name in names or ("work",):
            self.commit(at, name, f"{name} of {branch}\n")
        self.push(branch)
        return at

    def push(self, branch: str, *options: str) -> None:
        self.git("push", "-q", *options, "origin", branch)

    def tip(self, branch: str) -> str:
        return self.git("rev-parse", f"refs/heads/{branch}")

    def clone(self, name: str = "elsewhere") -> Path:
        """Make another clone, somebody else's."""
        path = self.folder / name
        self.git("clone", "-q", str(self.origin), str(path), at=self.folder)
        return path

    def on_main(self, *commands: tuple[str, ...]) -> None:
        """Do something to `main` elsewhere, as a forge does, and push it."""
        path = self.folder / "forge"
        if not path.exists():
            self.clone("forge")
        self.git("fetch", "-q", "origin", at=path)
        self.git("checkout", "-q", "-B", "main", "origin/main", at=path)
        for command in commands:
            # Another name than the agent's: within one second, a commit that is made anew by
            # the same one would be the same.
            self.git(*command, at=path, by="The Forge")
        self.git("push", "-q", "origin", "main", at=path)

    def main_moves(self, name: str = "other") -> None:
        """Let somebody else's commit come to `main`."""
        path = self.folder / "forge"
        self.on_main()
        self.commit(path, name, f"{name} of somebody else\n")
        self.git("push", "-q", "origin", "main", at=path)

    def watch(self, branch: str, dispatch: str = "", **fields: object) -> Watch:
        watch = Watch(
            dispatch=dispatch or branch.replace("/", "-"),
            branch=branch,
            base=self.base,
            since=self.since,
        )
        for name, value in fields.items():
            object.__setattr__(watch, name, value)
        return watch
