"""What the daemon needs from the world, as protocols with few methods; each is a promise.

Adapters raise `Unavailable` for no answer, `Refused` for a no, `ConfigError` for the operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date, datetime
from typing import TYPE_CHECKING, Protocol

from chump_orchestrator.core.attempts import Chronicle
from chump_orchestrator.core.backlog import Backlog
from chump_orchestrator.core.brakes import Fuse, History
from chump_orchestrator.core.corrections import CorrectedJournal, CorrectedLedger
from chump_orchestrator.core.dispatch import Command, Dispatch, Names, Workspace
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.outcome import PullRequest
from chump_orchestrator.core.records import (
    Denied,
    Lease,
    Parked,
    Pause,
    Recalled,
    Record,
    Remembered,
    Removal,
    Settlement,
    Watch,
)
from chump_orchestrator.core.reflection import Reflection
from chump_orchestrator.core.resuming import KeptWorktrees, Wishes
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

if TYPE_CHECKING:
    from chump_orchestrator.core.agent import Agent
    from chump_orchestrator.core.learning import Experience


class Clock(Protocol):
    """Time, handed in so that tests can move it."""

    def now(self) -> datetime:
        """Return the instant, aware, in UTC. For records only."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back and stands still in suspend."""
        ...


class BacklogSource(Protocol):
    """Where work comes from."""

    async def stamp(self) -> str:
        """Return a text that changes whenever the backlog does; cheap, empty if it is gone."""
        ...

    async def load(self) -> Backlog:
        """Read the backlog.

        Raises `Unavailable` when it cannot be read now, and `Refused` when what is there is no
        backlog, with file, line and column. Never blocks the loop. Safe to cancel.
        """
        ...


class Backend(Protocol):
    """Who does the work: a command line, and how to read what it prints. Starts nothing."""

    @property
    def label(self) -> str:
        """The name in rows and settings."""
        ...

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:
        """Return what to start for `gap`. Pure: looks at nothing but its arguments."""
        ...

    def read(self, line: str) -> Usage | Progress | None:
        """Read a line of standard output, cut at 8 KiB, where no `core.testimony.Reader` does."""
        ...


class Prompts(Protocol):
    """Makes the brief."""

    async def prompt(self, gap: Gap, workspace: Workspace, lessons: tuple[str, ...]) -> str:
        """Return the brief for `gap`; `Unavailable` when a part of it cannot be read."""
        ...


class Executor(Protocol):
    """Where agents run."""

    def expecting(self, dispatch_id: str) -> AbstractAsyncContextManager[None]:
        """Get ready for a dispatch that may be launched within the block, while it is prepared.

        Nothing is begun for it, and nothing is left when it was not launched. Fails for nothing
        that a launch would not tell of. Cancelled, it takes a few seconds at most.
        """
        ...

    async def launch(
        self, dispatch: Dispatch, workspace: Workspace, command: Command, prompt: str
    ) -> Agent:
        """Start an agent; returns once it is recorded and executing.

        `Refused` when its program cannot be executed, `Unavailable` when this machine cannot now.
        After either, nothing of it runs. Cancelling waits until it runs and is recorded.
        """
        ...

    async def attach(self, dispatch_id: str) -> Agent | None:
        """Take up a dispatch that was launched before, running or ended.

        `None` when no agent was ever started for it, and none ever will be. An agent whose shim
        died comes back ended, its exit `lost`.
        """
        ...

    async def known(self) -> tuple[str, ...]:
        """Return the ids of all dispatches that have left something on disk."""
        ...

    async def recall(self, dispatch_id: str) -> Recalled | None:
        """Return what was written down of a dispatch before it was launched.

        For a ledger that has no row of it. `None` when nothing of that can be understood.
        """
        ...

    async def discard(self, dispatch_id: str) -> None:
        """Delete what a settled dispatch has left on disk."""
        ...


class Pulls(Protocol):
    """Whether it shipped."""

    async def check(self) -> None:
        """See that it can be asked at all; `ConfigError` for what an operator must change.

        To be called before anything is dispatched. Asks no forge.
        """
        ...

    async def look(self, watches: Sequence[Watch]) -> Mapping[str, PullRequest]:
        """Look at all branches with one question; the answer has every branch asked for.

        A branch without a request of ours is there with state `none`. `Unavailable` when the
        forge's answer cannot be trusted to be one: that is no news, not bad news.
        """
        ...


class Worktrees(KeptWorktrees, Protocol):
    """Makes and removes worktrees, one at a time for the whole repository."""

    async def heal(self) -> tuple[str, ...]:
        """Put aside broken registrations of ours; to be called before any other git command."""
        ...

    async def refresh(self, *, at_least: datetime | None = None) -> str:
        """Fetch the base where that is due and return its commit.

        With `at_least`, a fetch older than that is due. `Unavailable` when the base cannot be
        resolved now, or when the last good fetch is too old (behaviour D3); `Refused` when there
        is none, which waiting does not change: the remote answered, or there is no remote.
        `ConfigError` when the operator has to choose between remotes.
        """
        ...

    async def propose(self, gap: Gap) -> Names:
        """Return the names of a new attempt, free now (behaviour D1)."""
        ...

    async def add(self, names: Names, base: str, dispatch_id: str) -> Workspace:
        """Make a worktree on a new branch; verified, or rolled back and an error raised."""
        ...

    async def path_of(self, names: Names) -> str:
        """Return where the worktree with these names lies on this machine, made or not."""
        ...

    async def remove(self, workspace: Workspace, dispatch_id: str) -> Removal:
        """Remove a settled dispatch's worktree and branch if nothing can be lost by it.

        What was given to another dispatch is left alone, and counts as removed. Otherwise
        everything is kept, and a snapshot of it under a salvage ref.
        """
        ...

    async def sweep_kept(self) -> tuple[str, ...]:
        """Remove what `remove` kept for long enough and is whole in its snapshot; return paths."""
        ...

    async def maintain(self) -> None:
        """Have git pack what has gathered in the repository, if that is much; waits for no pack."""
        ...

    async def shortage(self) -> str:
        """Return why there is no room for another worktree, or empty."""
        ...

    async def prepare(self, wanted: int) -> None:
        """Have so many made ahead of time, where possible; takes seconds. Safe to cancel."""
        ...


class Leases(Protocol):
    """Who holds which gap."""

    async def claim(self, gap: Gap, dispatch_id: str, workspace: Workspace) -> Denied | None:
        """Claim `gap`; `None` when it is ours. Idempotent for the same dispatch."""
        ...

    async def renew(self, dispatch_id: str) -> None:
        """Move the end of our lease on; quiet when there is none."""
        ...

    async def release(self, dispatch_id: str) -> None:
        """Take our lease away; quiet when there is none."""
        ...

    async def live(self) -> tuple[Lease, ...]:
        """Return every lease that has not ended, ours included."""
        ...

    async def held_by_us(self) -> tuple[str, ...]:
        """Return the dispatch ids for which this orchestrator has left a lease."""
        ...


class Ledger(Chronicle, CorrectedLedger, Wishes, Protocol):
    """Dispatches and their states, ours alone. What a method returned from is durable."""

    async def add(self, dispatch: Dispatch) -> None:
        """Record a planned dispatch; `Refused` when its gap has an active one.

        One that goes on with a session fulfils the wish for that in the same step.
        """
        ...

    async def update(self, dispatch_id: str, record: Record) -> None:
        """Store the changed state of a dispatch that is not settled."""
        ...

    async def settle(self, dispatch_id: str, settlement: Settlement) -> None:
        """Store the outcome, put its reflection into the outbox, park or free the gap. Once."""
        ...

    async def tidied(self, dispatch_id: str) -> None:
        """Store that nothing of the dispatch is left to clean up."""
        ...

    async def abort(self, dispatch_id: str, reason: str, at: datetime) -> None:
        """Store that no agent was ever started."""
        ...

    async def records(self, *, active: bool = False, untidy: bool = False) -> tuple[Record, ...]:
        """Return dispatches, oldest first; only active ones, or ended ones not yet tidied."""
        ...

    async def ends(self, dispatch_ids: Sequence[str]) -> Mapping[str, datetime | None]:
        """Return when these ended, `None` for one under way; those without a row are left out."""
        ...

    async def latest(self, limit: int, gap: str = "") -> tuple[Record, ...]:
        """Return the latest dispatches, newest first, of one gap or of all."""
        ...

    async def history(self, gap: str) -> History:
        """Return what is known of a gap's attempts since it was last freed."""
        ...

    async def attempts(self, gap: str) -> int:
        """Return how many dispatches the gap has had, ever."""
        ...

    async def outbox(self) -> tuple[Reflection, ...]:
        """Return the reflections that are not delivered yet, oldest first."""
        ...

    async def delivered(self, dispatch_id: str) -> None:
        """Take a reflection out of the outbox; the dispatch is done."""
        ...

    async def parked(self) -> tuple[Parked, ...]:
        """Return the gaps that are parked or in a backoff."""
        ...

    async def park(self, parked: Parked) -> None:
        """Park a gap."""
        ...

    async def free(self, gap: str, at: datetime) -> None:
        """Free a gap: no longer parked or shipped, and its count of failures begins anew."""
        ...

    async def shipped(self) -> Mapping[str, date]:
        """Return the gaps we shipped that have not been opened anew since."""
        ...

    async def confirm_shipped(self, gaps: Sequence[str]) -> None:
        """Store that the backlog, too, said done; open there afterwards means opened anew."""
        ...

    async def confirmed(self) -> frozenset[str]:
        """Return the shipped gaps that the backlog has confirmed."""
        ...

    async def pause(self) -> Pause | None:
        """Return the pause, if there is one."""
        ...

    async def set_pause(self, pause: Pause | None) -> None:
        """Pause or, with `None`, resume; lasts over restarts."""
        ...

    async def fuse(self) -> Fuse:
        """Return the state of the fuse (behaviour X5)."""
        ...

    async def set_fuse(self, fuse: Fuse) -> None:
        """Store the state of the fuse."""
        ...


class Journal(CorrectedJournal, Protocol):
    """What is kept to learn from, shared with other tools."""

    async def record(self, reflection: Reflection) -> None:
        """Write the rows of one reflection, at most once however often it is called.

        `Unavailable` when a database cannot be written now.
        """
        ...

    async def remembered(self, dispatch_ids: Sequence[str]) -> Mapping[str, Remembered]:
        """Return how dispatches ended, of those it has reflections of; or `Unavailable`."""
        ...

    async def experience(self, today: date) -> Experience:
        """Return what the rows of the last year teach of candidates; or `Unavailable`."""
        ...
