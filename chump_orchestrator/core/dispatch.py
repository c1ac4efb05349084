"""One attempt to ship one gap, ready to carry out: names, depth, deadlines (behaviour D, P1)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Mapping
from dataclasses import field
from datetime import UTC, datetime, timedelta

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import SHOWN, Effort, Gap, on_one_line
from chump_orchestrator.core.routing import Route

DISPATCH_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
"""What a dispatch id looks like; claim scripts use it as a file name (behaviour D4)."""

SESSION = "{session}"
"""An argument that stands for the id of the agent's session."""

_SESSIONS = uuid.UUID("8f7c1c1e-0f0b-5d53-9c39-6d0f6f2f5c1a")
"""The namespace of the sessions that are named after dispatches; never changed."""

SLUG_IN_ID = 40
"""Characters of the gap's slug that are kept in a dispatch id, to leave room for the rest."""

DEFAULT_SOFT = {
    Effort.XS: timedelta(minutes=20),
    Effort.S: timedelta(minutes=20),
    Effort.M: timedelta(minutes=60),
    Effort.L: timedelta(minutes=180),
    Effort.XL: timedelta(minutes=360),
    Effort.UNKNOWN: timedelta(minutes=60),
}
"""Soft deadlines by effort (behaviour P1)."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long an attempt may take, in active time of its agent, suspended time left out.

    From `soft` on it is overdue; at `hard` its agent is stopped, or as late as `last` while the
    forge does not answer. `grace` is what the agent has between the first signal and KILL.
    `silent` is how long it may write nothing before that is worth a notice.
    """

    soft: timedelta
    grace: timedelta = timedelta(seconds=30)
    silent: timedelta = timedelta(minutes=5)
    pull: timedelta = timedelta(hours=24)
    ci_grace: timedelta = timedelta(minutes=30)
    look_interval: timedelta = timedelta(seconds=30)

    @property
    def hard(self) -> timedelta:
        """Twice the soft deadline (behaviour P2)."""
        return 2 * self.soft

    @property
    def last(self) -> timedelta:
        """Three times the soft deadline, for a silent forge (behaviour P3)."""
        return 3 * self.soft


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """The operator's deadlines; the soft ones by effort."""

    soft: Mapping[Effort, timedelta] = field(default_factory=lambda: dict(DEFAULT_SOFT))
    grace: timedelta = timedelta(seconds=30)
    silent: timedelta = timedelta(minutes=5)
    pull: timedelta = timedelta(hours=24)
    ci_grace: timedelta = timedelta(minutes=30)
    look_interval: timedelta = timedelta(seconds=30)

    def of(self, gap: Gap) -> Deadlines:
        """Return the deadlines of `gap`; its own `deadline` outranks its effort's."""
        return Deadlines(
            soft=gap.deadline or self.soft.get(gap.effort) or DEFAULT_SOFT[gap.effort],
            grace=self.grace,
            silent=self.silent,
            pull=self.pull,
            ci_grace=self.ci_grace,
            look_interval=self.look_interval,
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one agent may use of its machine, itself and all that it starts together.

    `memory` is in bytes, `tasks` counts processes and threads, `cpu_weight` is its share beside
    others, 100 being the usual one; `None` is no limit. `required` ones keep an agent from
    starting where they cannot be had. `nice` is by how much it, and its shim, yield to everybody
    else where processors are busy: 19 at most, 0 for not at all.
    """

    memory: int | None = None
    tasks: int | None = None
    cpu_weight: int | None = None
    required: bool = False
    nice: int = 2


@dataclass(frozen=True, slots=True)
class Names:
    """Branch and folder of an attempt; the folder lies directly under the worktrees' base."""

    branch: str
    folder: str


@dataclass(frozen=True, slots=True)
class Workspace:
    """A worktree that is ready: where it lies, its branch, and the commit it began from."""

    path: str
    branch: str
    base: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """Which dispatch an attempt goes on with, in its worktree, on its branch, in its session.

    `since` is when the first of them was launched, in UTC: a request opened from then on is theirs
    (behaviour P6). `number` and `head` are those of the request that was open when it was taken
    over, `None` and empty where none was. `times` counts the sessions in a row that the daemon has
    begun by itself for that request, 0 for one that an operator asked for.
    """

    dispatch: str
    session: str
    since: datetime
    number: int | None = None
    head: str = ""
    times: int = 0


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One attempt to ship one gap.

    `attempt` counts this gap's dispatches from 1. It holds no path of one machine: where its
    worktree lies is known to whoever runs it. `resumed` of `None` is an attempt of its own.
    """

    id: str
    gap: Gap
    attempt: int
    route: Route
    deadlines: Deadlines
    names: Names
    created_at: datetime
    resumed: Resumed | None = None

    @property
    def session(self) -> str:
        """The id of its agent's session, for backends that let it be chosen: always the same.

        Of an attempt that goes on with another one it is that one's, whoever chose it.
        """
        return self.resumed.session if self.resumed else str(uuid.uuid5(_SESSIONS, self.id))


@dataclass(frozen=True, slots=True)
class Command:
    """What a backend wants to have started; nothing of it is resolved yet.

    `programs` are candidates, the first that can be executed counts: absolute, or relative to
    the worktree when it contains a `/`, or looked up on the agent's PATH. An argument `{session}`
    is the dispatch's session for the launcher to fill in; with `expand`, `{worktree}`, `{branch}`
    and `{prompt_file}` within arguments are so, too. `brief_prefix` is put before the brief. `env`
    is set for the agent, `pass_env` names what else may come from the daemon's environment
    (patterns with `*`). `env_from` maps further variables to set to those of the daemon that hold
    their values; where one is missing the variable stays unset, even if `pass_env` matches it, so
    that a key never reaches another provider. `stop_signals` are sent first to last as the
    grace runs out.
    """

    programs: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pass_env: tuple[str, ...] = ()
    stop_signals: tuple[str, ...] = ("INT", "TERM")
    expand: bool = False
    brief_on_stdin: bool = True
    env_from: Mapping[str, str] = field(default_factory=dict)
    brief_prefix: str = ""

    @property
    def names_session(self) -> bool:
        """Whether the agent is told which session it has."""
        return SESSION in self.args


def dispatch_id(gap: Gap, moment: datetime, suffix: str) -> str:
    """Return the id of a new dispatch: the gap's slug, the UTC second, and a random suffix."""
    second = f"{moment.astimezone(UTC):%y%m%d%H%M%S}"
    return f"{gap.slug[:SLUG_IN_ID].rstrip('-')}-{second}-{suffix}"


def names(gap: Gap, taken: Collection[str], *, prefix: str) -> Names:
    """Return the names of a new attempt: the smallest number that is free (behaviour D1).

    `taken` holds what is in the way: branches (with their prefix), folders, and the slugs of
    other gaps. A branch is also in the way of one that would be its folder.
    """
    inner = {name for name in taken if name.startswith(prefix) and "/" in name[len(prefix) :]}
    folders = {prefix + name[len(prefix) :].partition("/")[0] for name in inner}
    number = 1
    while True:
        folder = gap.slug if number == 1 else f"{gap.slug}-r{number}"
        branch = prefix + folder
        if folder not in taken and branch not in taken and branch not in folders:
            return Names(branch, folder)
        number += 1


def depth_objection(depth: str | None) -> str | None:
    """Say why an orchestrator with this `CHUMP_DISPATCH_DEPTH` must not dispatch, or `None`.

    An agent that starts an orchestrator would multiply agents without end (behaviour D6).
    """
    shown = on_one_line(depth or "")
    if not shown or (shown.isdecimal() and int(shown[:SHOWN]) == 0):
        return None
    return (
        f"CHUMP_DISPATCH_DEPTH is {shown[:SHOWN]!r}: this process was itself dispatched by an"
        " orchestrator and must not dispatch further; unset the variable if that is not so"
    )
