"""A repository to throw away: a checkout with a bare origin, a backlog, and settings of its own.

What runs in it is the real thing; only the repository is made up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from chump_orchestrator import config
from chump_orchestrator.adapters.process import run as run_helper
from chump_orchestrator.core.errors import Refused

PATIENCE = timedelta(seconds=30)
"""For each git command of the set-up."""

_OURS = ("CHUMP_", "GAP_CLAIM_", "GIT_")


def environment() -> dict[str, str]:
    """Return the environment without what would make this something else than a try-out."""
    return {n: v for n, v in config.environment().items() if not n.startswith(_OURS)}


async def git(folder: Path, *args: str) -> str:
    """Run git in `folder` and return what it printed; `Refused` when it failed."""
    done = await run_helper(["git", *args], cwd=folder, env=environment(), timeout=PATIENCE)
    if done.code:
        msg = f"git {args[0]} failed: {done.err.decode('utf-8', 'replace').strip()}"
        raise Refused(msg)
    return done.out.decode("utf-8", "replace")


async def repository(purpose: str, backlog: str, settings: str) -> tuple[Path, config.Loaded]:
    """Make the repository; return its folder's `project` and its settings.

    Beside it lies `origin.git`. `settings` may name `{folder}`. Nothing outside is touched.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"chump-{purpose}-"))
    root, origin = folder / "project", folder / "origin.git"
    (root / "docs").mkdir(parents=True)
    (root / ".chump").mkdir()
    (root / "docs" / "gaps.yaml").write_text(backlog, "utf-8")
    (root / "README.md").write_text("# A project\n", "utf-8")
    (root / ".chump" / "orchestrator.toml").write_text(settings, "utf-8")
    who = (
        "-c",
        "user.name=Demo",
        "-c",
        "user.email=demo@example.org",
        "-c",
        "commit.gpgsign=false",
    )
    for args in (
        ("init", "-q", "--bare", "-b", "main", str(origin)),
        ("init", "-q", "-b", "main", str(root)),
        ("-C", str(root), "add", "docs", "README.md"),
        ("-C", str(root), *who, "commit", "-q", "-m", "Begin"),
        ("-C", str(root), "remote", "add", "origin", str(origin)),
        ("-C", str(root), "push", "-q", "-u", "origin", "main"),
        ("-C", str(root), "remote", "set-head", "origin", "main"),
    ):
        await git(folder, *args)
    return root, load(root)


def load(root: Path, more: Mapping[str, str] | None = None) -> config.Loaded:
    """Read the settings of such a repository, the user's own left out."""
    environ = {**environment(), **(more or {})}
    return config.load(root, environ=environ, user_file=root.parent / "none.toml")
