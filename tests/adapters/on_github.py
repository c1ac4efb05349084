"""A repository on a GitHub that a test says everything of, and a provider that looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.core.outcome import PullRequest
from tests.adapters.a_repository import ARepository
from tests.adapters.fake_gh import FakeGh

BRANCH = "claude/gap-1"
MINUTE = timedelta(minutes=1)


class World:
    """A forge, a repository, and a provider that looks at them."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.repository = ARepository(folder)
        self.forge = FakeGh(folder / "bin")
        self.env = self.repository.env | {"GH_REPO": self.forge.repository} | dict(env or {})
        self.pulls = self.a_provider()

    def a_provider(self) -> GhPulls:
        """Return one that has seen nothing yet, as that of a daemon that has just begun."""
        return GhPulls(
            git=Git(self.repository.root, self.env),
            env=self.env | {"PATH": f"{self.forge.folder}:{self.env['PATH']}"},
            clock=self.repository.clock,
        )

    def request(self, number: int, head: str, **fields: Any) -> None:
        created = self.repository.since + fields.pop("after", MINUTE)
        self.forge.request(number, fields.pop("branch", BRANCH), head, created, **fields)

    def opened(self, number: int = 7, **fields: Any) -> str:
        """Push a commit and open a request for it."""
        self.repository.pushed(BRANCH)
        head = self.repository.tip(BRANCH)
        self.request(number, head, **fields)
        return head

    def another(self, branch: str = BRANCH, number: int = 8, **fields: Any) -> str:
        """Open a request that somebody else has made under the same branch name."""
        elsewhere = self.repository.clone(f"clone-{number}")
        self.repository.git("checkout", "-q", "-b", branch, at=elsewhere)
        head = self.repository.commit(elsewhere, f"strange-{number}", "not ours\n")
        ref = f"{branch}:refs/pull/{number}/head"
        self.repository.git("push", "-q", "origin", ref, at=elsewhere)
        self.request(number, head, branch=branch, **fields)
        return head

    async def look(self) -> PullRequest:
        return (await self.pulls.look([self.repository.watch(BRANCH)]))[BRANCH]
