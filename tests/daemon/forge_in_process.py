"""A GitHub and its `gh` without a process, for virtual time: the adapter itself is the real one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from chump_orchestrator.adapters import pulls_wire
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.process import Finished
from chump_orchestrator.adapters.pulls_gh import GhPulls
from chump_orchestrator.adapters.pulls_ours import Commits
from chump_orchestrator.core.errors import Unavailable
from chump_orchestrator.core.outcome import PullRequest
from chump_orchestrator.core.records import Watch
from tests.adapters.fake_gh import BODIES, FAILURES
from tests.adapters.forge_graphql import answered
from tests.daemon.twins import LoopClock

ANSWER_S = 0.3
"""How long a server takes that answers."""

HTML = "<!DOCTYPE html>\n<html><body>Unicorn!</body></html>\n"


class Ours(Commits):
    """Every commit is known, and this dispatch's."""

    def __init__(self) -> None:
        """There is no repository."""

    async def refs(self, patterns: Iterable[str]) -> dict[str, str]:
        return {}

    async def known(self, oids: Iterable[str]) -> frozenset[str]:
        return frozenset(oids)

    async def is_ours(
        self, watch: Watch, tip: str, refs: Mapping[str, str], base_tip: str = ""
    ) -> bool:
        return True

    async def remember(self, watch: Watch, tip: str, refs: Mapping[str, str]) -> None:
        """Nothing to keep it in."""

    def watched_refs(self, watch: Watch) -> tuple[str, ...]:
        return ()

    async def let_go(
        self, watches: Iterable[Watch], sightings: Mapping[str, PullRequest], now: datetime
    ) -> None:
        """Nothing was kept."""

    def forget(self, watches: Iterable[Watch]) -> None:
        """Nothing was kept."""


class Forge(GhPulls):
    """Asked through the adapter; `outage` says how it fails by the time of day, or is empty."""

    def __init__(self, folder: Path, clock: LoopClock, patch: pytest.MonkeyPatch) -> None:
        env = {"GH_REPO": "acme/anvil", "PATH": "/nowhere"}
        super().__init__(git=Git(folder, env), env=env, clock=clock)
        self._commits = Ours()
        self.clock = clock
        self.requests: dict[str, dict[str, Any]] = {}
        self.outages: list[tuple[timedelta, str]] = []
        self.resets_at = clock.now() + timedelta(hours=1)
        self.calls = 0
        patch.setattr(pulls_wire, "run_program", self.run)

    async def check(self) -> None:
        """It can always be asked."""

    def put(self, branch: str, state: str = "OPEN", **fields: Any) -> None:
        """Open a request of a branch, or let it be in another state."""
        known = self.requests.get(branch) or {
            "number": len(self.requests) + 1,
            "createdAt": self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            "headRefOid": f"{len(self.requests) + 1:040x}",
            "tip": f"{len(self.requests) + 1:040x}",
            "headRefName": branch,
            "isCrossRepository": False,
            "isDraft": False,
            "url": "https://github.com/acme/anvil/pull/1",
            "mergeStateStatus": "UNKNOWN",
        }
        self.requests[branch] = {**known, "state": state, **fields}

    def fails(self) -> str:
        """Return how it fails at this moment; empty when it does not."""
        now = timedelta(seconds=self.clock.monotonic())
        begun = [kind for since, kind in self.outages if since <= now]
        return begun[-1] if begun else ""

    async def run(self, argv: Sequence[str], **how: Any) -> Finished:
        """Answer as `gh` does."""
        self.calls += 1
        kind = self.fails()
        if kind == "silent":
            await anyio.sleep(how["timeout"].total_seconds())
            raise Unavailable(f"gh did not finish within {how['timeout'].total_seconds():g} s")
        await anyio.sleep(ANSWER_S)
        if kind == "malformed":
            texts = [*BODIES.values(), HTML, '{"data":{"repository":{}}}']
            return Finished(0, texts[self.calls % len(texts)].encode(), b"")
        if kind:
            return Finished(1, b"", FAILURES[kind].encode())
        rate = {"remaining": 4000, "resetAt": self.resets_at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        known = {"repository": "acme/anvil", "requests": [*self.requests.values()], "rate": rate}
        answer, _ = answered(json.loads(how["feed"]), known)
        text = json.dumps(answer)
        return Finished(int("errors" in answer), text.encode(), text.encode())
