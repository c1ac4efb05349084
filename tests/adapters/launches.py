"""Launches real agents through the local executor, and sees that nothing of them stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psutil

from chump_orchestrator.adapters.local import LocalExecutor, ShimAgent
from chump_orchestrator.core.dispatch import Command, Deadlines, Limits, Workspace
from tests.adapters.shims import PATIENCE_S, marked
from tests.builders import a_dispatch

BASE = "0123456789012345678901234567890123456789"
SEEN = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
"""What agents see of the environment that the daemon has."""

FOR_A_WHILE = Command((shutil.which("sleep") or "sleep",), ("60",))
"""An agent that does nothing, and that a signal ends from its first moment on.

An interpreter that is still starting makes an exit code of the INT that it gets.
"""


class RealClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def python(script: str, *arguments: str, **fields: Any) -> Command:
    """Return the command of an agent that is a few lines of Python."""
    return Command((sys.executable,), ("-I", "-S", "-c", script, *arguments), **fields)


def ignore(_line: str) -> None:
    """Take a line and do nothing with it."""


async def eventually(claim: Callable[[], Any], what: str = "the claim") -> Any:
    """Wait until a claim holds, and give its value; the loop goes on meanwhile."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if value := claim():
            return value
        await anyio.sleep(0.01)
    raise AssertionError(f"{what} did not come true within {PATIENCE_S:.0f} s")


class Bench:
    """A state folder, a worktree, and executors on them; ends what was launched."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.worktree = folder / "worktree"
        self.worktree.mkdir(parents=True)
        self.workspace = Workspace(str(self.worktree), "claude/infra-1", BASE)
        self.asked: list[tuple[str, ...]] = []
        self.launched: list[str] = []
        self._number = 0

    def executor(
        self,
        seen: Mapping[str, str] = SEEN,
        *,
        overlay: Mapping[str, str] | None = None,
        secrets: tuple[str, ...] = (),
        python: str = sys.executable,
        cgroups: Path | None = None,
        managers: tuple[str, ...] = (),
        limits: Limits | None = None,
    ) -> LocalExecutor:
        """Return an executor on the state folder, as another daemon would have."""

        def environment(patterns: tuple[str, ...]) -> Mapping[str, str]:
            self.asked.append(patterns)
            return seen

        return LocalExecutor(
            state=self.state,
            environment=environment,
            secrets=lambda env: tuple(env[name] for name in secrets if name in env),
            overlay=overlay or {},
            clock=RealClock(),
            python=python,
            cgroups=cgroups,
            managers=lambda: managers,
            limits=lambda: limits or Limits(),
        )

    def id(self) -> str:
        """Return an id that no dispatch has had."""
        self._number += 1
        return f"infra-1-{os.getpid()}-{time.monotonic_ns() % 10**12}-{self._number}"

    async def launch(
        self,
        command: Command,
        *,
        dispatch_id: str = "",
        prompt: str = "do it",
        executor: LocalExecutor | None = None,
        workspace: Workspace | None = None,
        grace_s: float = 5.0,
    ) -> tuple[ShimAgent, str]:
        """Launch an agent and give it with its dispatch id."""
        dispatch_id = dispatch_id or self.id()
        self.launched.append(dispatch_id)
        deadlines = Deadlines(soft=timedelta(minutes=1), grace=timedelta(seconds=grace_s))
        agent = await (executor or self.executor()).launch(
            a_dispatch(dispatch_id, deadlines=deadlines),
            workspace or self.workspace,
            command,
            prompt,
        )
        return agent, dispatch_id

    def folder(self, dispatch_id: str) -> Path:
        """Return where a dispatch lies."""
        return self.state / "d" / dispatch_id

    def shim_of(self, dispatch_id: str) -> int:
        """Return the process id of a living shim."""
        return self.shims(dispatch_id)[0]

    def shims(self, dispatch_id: str) -> list[int]:
        """Return the process ids of what runs on the folder of a dispatch."""
        wanted = str(self.folder(dispatch_id))
        return [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if wanted in (process.info["cmdline"] or [])
        ]

    async def clean(self) -> None:
        """End whatever is left, and wait until it has gone."""
        for name in {*self.launched, *(folder.name for folder in self.state.glob("d/*"))}:
            for pid in [*self.shims(name), *marked(name)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                    os.kill(pid, signal.SIGKILL)
            await eventually(partial(self._is_over, name), "the end of a shim")

    def _is_over(self, dispatch_id: str) -> bool:
        return not self.shims(dispatch_id) and not marked(dispatch_id)
