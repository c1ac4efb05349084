"""Real repositories for tests: one with a bare origin, and shorthand for git commands on it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

IDENTITY = {
    "GIT_AUTHOR_NAME": "A Test",
    "GIT_AUTHOR_EMAIL": "test@example.com",
    "GIT_COMMITTER_NAME": "A Test",
    "GIT_COMMITTER_EMAIL": "test@example.com",
}


def git(folder: Path, *args: str, check: bool = True) -> str:
    """Run git in `folder` and return what it printed, without blanks around it."""
    done = subprocess.run(
        ["git", *args],
        cwd=folder,
        env={**os.environ, **IDENTITY},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        text=True,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"git {' '.join(args)}: {done.stderr}")
    return done.stdout.strip()


def commit(folder: Path, name: str = "file", text: str = "text\n") -> str:
    """Write the file `name` in the work tree `folder`, commit it, and return the commit."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    git(folder, "add", "-f", "--", name)
    git(folder, "commit", "-q", "-m", f"Write {name}")
    return git(folder, "rev-parse", "HEAD")


@dataclass(frozen=True, slots=True)
class Repository:
    """A main work tree on `main`, in step with its bare origin."""

    root: Path
    origin: Path

    @property
    def base_dir(self) -> Path:
        return self.root / ".claude" / "worktrees"

    def git(self, *args: str, check: bool = True) -> str:
        return git(self.root, *args, check=check)

    def head(self, ref: str = "HEAD") -> str:
        return self.git("rev-parse", ref)

    def push_elsewhere(self, branch: str, name: str = "elsewhere") -> str:
        """Push a commit to `branch` of the origin from another clone; return the commit."""
        clone = self.root.parent / f"clone-{branch.replace('/', '-')}-{name}"
        git(self.root.parent, "clone", "-q", str(self.origin), str(clone))
        git(clone, "checkout", "-q", "-B", branch)
        oid = commit(clone, name)
        git(clone, "push", "-q", "origin", f"HEAD:refs/heads/{branch}")
        return oid


def a_repository(folder: Path, *, name: str = "repo") -> Repository:
    """Make `folder/name` with one commit, cloned from the bare `folder/origin.git`."""
    origin = folder / "origin.git"
    root = folder / name
    git(folder, "init", "-q", "--bare", "-b", "main", str(origin))
    git(folder, "clone", "-q", str(origin), str(root))
    git(root, "checkout", "-q", "-B", "main")
    (root / ".gitignore").write_text("target/\n.env*\n*.log\n", "utf-8")
    git(root, "add", ".gitignore")
    commit(root, "README", "read me\n")
    git(root, "push", "-q", "-u", "origin", "main")
    git(root, "remote", "set-head", "origin", "main")
    return Repository(root, origin)


def a_local_repository(folder: Path, *, name: str = "repo") -> Path:
    """Make `folder/name` with one commit on `main` and no remote; return its path."""
    root = folder / name
    git(folder, "init", "-q", "-b", "main", str(root))
    commit(root, "README", "read me\n")
    return root
