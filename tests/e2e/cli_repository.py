"""A repository with a backlog, and the command line run on it, in this process or another."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest
import structlog

from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.cli.root import main
from chump_orchestrator.core.outcome import Exit, Outcome, OutcomeKind
from chump_orchestrator.core.records import DispatchState, Record, Settlement
from chump_orchestrator.daemon.control import Operations, serve
from tests.builders import NOW, a_dispatch, a_gap

BACKLOG = """\
gaps:
  - {id: DEMO-1, title: Add a greeting, priority: P1, effort: xs, status: open}
  - {id: DEMO-2, title: Translate it, priority: P0, effort: xs, status: open, depends_on: [DEMO-1]}
  - {id: DEMO-3, title: A mascot, priority: P3, effort: s, status: open}
  - {id: DEMO-4, title: Say more, priority: P1, effort: m, status: open}
  - {id: DEMO-5, title: Say even more, priority: P1, effort: m, status: open}
  - {id: DEMO-6, title: Long ago, priority: P1, effort: m, status: done}
"""


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code and both its streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


class Repository:
    """A git repository without a commit, with `BACKLOG`."""

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capture = capture
        self.git("init", "-q", "-b", "main")
        self.write("docs/gaps.yaml", BACKLOG)

    @property
    def state(self) -> Path:
        return self.root / ".chump" / "orchestrator"

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments],
            cwd=self.root,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "-q", "--allow-empty", "-m", "all")

    def say(self, *arguments: str) -> Said:
        """Run the command line in this process."""
        self._capture.readouterr()
        code = main(arguments)
        out, err = self._capture.readouterr()
        return Said(code, out, err)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the command line in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "chump_orchestrator", *arguments],
            cwd=self.root,
            text=True,
            **options,
        )

    def in_ledger(self, work: Callable[[SqliteLedger], Any]) -> Any:
        """Await what `work` makes of the ledger, opened for writing."""

        async def inside() -> Any:
            self.state.mkdir(parents=True, exist_ok=True)
            async with await SqliteLedger.open(
                self.state / "ledger.db", clock=HostClock()
            ) as ledger:
                return await work(ledger)

        return anyio.run(inside)

    @contextmanager
    def daemon(self, operations: Operations, state: Path | None = None) -> Iterator[None]:
        """Have `operations` answer at the control socket, in a thread of their own.

        `state` is the state folder, by default the usual one.
        """
        with anyio.from_thread.start_blocking_portal() as portal:
            serving = partial(serve, (state or self.state) / "control.sock", operations)
            task, _ = portal.start_task(_started(serving))
            yield
            task.cancel()


def _started(serving: Callable[..., Any]) -> Callable[..., Any]:
    async def run(*, task_status: Any) -> None:
        await serving(task_status=task_status)

    return run


@contextmanager
def a_quiet_log() -> Iterator[None]:
    """Undo what a command configures of the log."""
    try:
        yield
    finally:
        structlog.reset_defaults()


async def ended(
    ledger: SqliteLedger,
    gap: str = "DEMO-1",
    outcome: Outcome | None = None,
    *,
    attempt: int = 1,
    after: timedelta = timedelta(seconds=60),
) -> str:
    """Add a dispatch of `gap` that was over `after` some time; return its id."""
    dispatch = await running(ledger, gap, attempt=attempt)
    await ledger.settle(
        dispatch,
        Settlement(
            outcome or Outcome(OutcomeKind.KILLED, "exit code 7"),
            NOW + after,
            None,
            None,
            progress=False,
            siblings=0,
        ),
    )
    return dispatch


async def running(ledger: SqliteLedger, gap: str = "DEMO-1", *, attempt: int = 1) -> str:
    """Add a dispatch of `gap` whose agent runs; return its id."""
    dispatch = a_dispatch(f"{gap.lower()}-x-{attempt}", gap=a_gap(gap), attempt=attempt)
    await ledger.add(dispatch)
    record = Record(
        dispatch,
        DispatchState.RUNNING,
        pid=4711,
        launched_at=NOW,
        exit=Exit(code=7, active=timedelta(seconds=59)),
    )
    await ledger.update(dispatch.id, record)
    return dispatch.id
