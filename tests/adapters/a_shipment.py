"""A worktree in which an agent has committed, and the shipper that is to ship it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.shipping import GitShipper
from chump_orchestrator.core.dispatch import Workspace
from chump_orchestrator.core.shipping import Sealed, Withheld
from chump_orchestrator.settings.tables import FORBIDDEN_PATHS
from tests.adapters.a_repository import IDENTITY, ARepository

BRANCH = "claude/gap-1"
MESSAGE = "GAP-1: keep what its agent left uncommitted\n"
KEY_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"
"""The first line of a private key's body; a whole file of it would set off other scanners."""


def token(kind: str) -> str:
    """Return something with the shape of a token, put together here so that no file has it."""
    letters = "q8Zt3LmX0vBnRw5KyH2dFsPc7GjUe9TaQ1oWi4"
    return {
        "github": "gh" + "p_" + letters[:36],
        "fine-grained": "github" + "_pat_" + letters + letters[:30],
        "aws": "AK" + "IAQ7ZT3LMX2VBNRW5K",
        "aws-secret": "aws_secret_access_key = " + letters + "Xz",
        "gitlab": "glp" + "at-" + letters[:20],
        "slack": "xo" + "xb-123450987612-" + letters[:24],
        "anthropic": "sk-" + "ant-api03-" + letters + letters,
        "openai": "sk-" + "proj-" + letters + letters,
        "google": "AI" + "za" + letters[:35],
        "stripe": "sk" + "_live_" + letters[:24],
        "npm": "np" + "m_" + letters[:36],
        "private-key": f"-----BEGIN {'PRIVATE'} KEY-----\n{KEY_BODY}\n",
    }[kind]


class AShipment:
    """A dispatch of `BRANCH` in a clone of a bare origin; `shipper` looks and pushes."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.repository = ARepository(folder)
        self.worktree = self.repository.worktree(BRANCH)
        self.workspace = Workspace(str(self.worktree), BRANCH, self.repository.base)
        self.shipper = self.a_shipper(**options)

    def a_shipper(self, *, env: Mapping[str, str] | None = None, **options: Any) -> GitShipper:
        git = Git(self.repository.root, {**self.repository.env, **(env or {})})
        given = {"base_ref": "", "forbidden": FORBIDDEN_PATHS, "identity": IDENTITY, **options}
        return GitShipper(git=git, **given)

    def git(self, *args: str) -> str:
        return self.repository.git(*args, at=self.worktree)

    def commit(
        self, name: str = "work.txt", data: str | bytes = "work\n", message: str = ""
    ) -> str:
        """Write a file and commit it; returns the commit."""
        path = self.worktree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return self.committed(name, message)

    def committed(self, name: str, message: str = "") -> str:
        self.git("add", "-f", "--", name)
        self.git("commit", "-q", "--allow-empty", "-m", message or "change a file")
        return self.git("rev-parse", "HEAD")

    def link(self, name: str, target: str) -> str:
        path = self.worktree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
        return self.committed(name)

    async def inspect(self) -> Sealed | Withheld:
        return await self.shipper.inspect(self.workspace, MESSAGE)

    async def refusal(self) -> str:
        """Return why nothing is pushed; it has to be."""
        found = await self.inspect()
        assert isinstance(found, Withheld), found
        return found.reason

    def pushed(self) -> str:
        """Return the commit that the origin has on the branch, or empty."""
        ref = f"refs/heads/{BRANCH}"
        return self.repository.git("for-each-ref", "--format=%(objectname)", ref, at=self.origin)

    @property
    def origin(self) -> Path:
        return self.repository.origin
