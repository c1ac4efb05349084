"""Shipping in the place of agents: how far it got, what may be shipped, and what the request says.

The daemon pushes and opens the request itself, so that agents need no token (behaviour P9). Each
stage is on record before the next effect, and every effect may be repeated.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.dispatch import Dispatch, Workspace
from chump_orchestrator.core.gap import Gap, on_one_line, plain
from chump_orchestrator.core.outcome import Exit
from chump_orchestrator.core.testimony import Report

TITLE_LIMIT = 200
"""Characters of a request's title; GitHub takes 256, and ids may have 64 of them."""

CRITERIA, CRITERION_LIMIT = 20, 400
"""How many acceptance criteria a request quotes, and how many characters of each."""

CELL_LIMIT = 120
"""Characters of a name in a request's table."""


class Stage(StrEnum):
    """How far shipping got; the strings are stored."""

    DUE = "due"
    SEALED = "sealed"
    PUSHED = "pushed"
    OPENED = "opened"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Shipment:
    """What is on record of shipping one dispatch; a dispatch without one ships for itself.

    `head` is the commit that was looked through, and no other is pushed; empty while nothing was.
    `checked` says in words what was looked through. `number` and `url` are the request's, once
    there is one.
    """

    stage: Stage = Stage.DUE
    head: str = ""
    checked: str = ""
    number: int | None = None
    url: str = ""


@dataclass(frozen=True, slots=True)
class Sealed:
    """The commit `head` may be pushed; `checked` says what was looked through for that."""

    head: str
    checked: str


@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing is pushed. `reason` names places and rules, and never what was found there."""

    reason: str
    cause: Cause = Cause.SHIP_REFUSED


@dataclass(frozen=True, slots=True)
class Letter:
    """What a request says; foreign text in it calls nobody and closes nothing."""

    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A request that is there, opened now or found; `url` may be empty."""

    number: int
    url: str = ""


class Shipper(Protocol):
    """Pushes what an agent has committed, and asks for its merge.

    All methods may be repeated, and cancelled at any moment: whatever had happened by then is
    found the next time. `Unavailable` delays; `Refused` ends it.
    """

    async def check(self) -> None:
        """See that it can ship at all; `ConfigError` for what an operator must change.

        To be called before any agent is started. Asks no forge.
        """
        ...

    async def inspect(self, workspace: Workspace, message: str) -> Sealed | Withheld:
        """Look through everything that a push would make public, and push nothing.

        Work that is not committed is withheld or, where the operator wants that, committed with
        `message`. Takes some minutes at most.
        """
        ...

    async def push(self, workspace: Workspace, head: str) -> None:
        """Have the remote's branch of that name be the commit `head`, and nothing else."""
        ...

    async def open(
        self, workspace: Workspace, head: str, letter: Letter, since: datetime
    ) -> Opened | None:
        """Open a request for the branch that was pushed, or find the one there is.

        One that was closed or merged counts if it is of `head`, or was made after `since`.
        `None` where there are no requests: then the push was all.
        """
        ...

    async def finish(self, opened: Opened) -> tuple[str, ...]:
        """Give the request its labels and arm its merge; return in words what was not granted.

        What was returned for an earlier request need not be said again.
        """
        ...


def may_be_shipped(ended: Exit) -> bool:
    """Whether an agent that ended so has finished its work by itself.

    What one leaves that was stopped, that failed or that was lost is salvaged and not shipped.
    """
    return ended.code == 0 and not (ended.stopped_by or ended.lost or ended.spawn_error)


def letter(dispatch: Dispatch, shipment: Shipment, report: Report, active: timedelta) -> Letter:
    """Return the title and the body of the request for a dispatch.

    `active` is how long its agent worked.
    """
    gap, route, usage = dispatch.gap, dispatch.route, report.usage
    facts = {
        "Dispatch": f"{_code(dispatch.id)}, attempt {dispatch.attempt}",
        "Lease": f"held for {_code(gap.id)} by that dispatch until it is settled",
        "Backend": _code(route.backend),
        "Model": _code(report.model or route.model),
        "Worked for": str(timedelta(seconds=round(active.total_seconds()))),
        "Turns": "" if usage.turns is None else f"{usage.turns:,}",
        "Tokens": "" if usage.tokens is None else f"{usage.tokens:,}",
        "Cost": "" if usage.cost_usd is None else f"{usage.cost_usd:.2f} USD, by its own account",
        "Commit": _code(shipment.head),
        "Looked through": shipment.checked,
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in facts.items() if text)
    body = (
        f"An agent's work on gap {_code(gap.id)}, shipped by chump-orchestrator. What the backlog"
        f" asks for, in its own words:\n\n{_quoted(gap)}\n\n| | |\n|---|---|\n{rows}\n\n"
        "Before it was pushed, every commit was looked through for secrets and forbidden paths."
        " Nobody has reviewed the work itself.\n"
    )
    title = _cut(f"{gap.id}: {neutral(on_one_line(gap.title)) or 'no title'}", TITLE_LIMIT)
    return Letter(title, body)


def committing(gap: Gap) -> str:
    """Return the message of a commit of what an agent has left uncommitted."""
    return f"{gap.id}: keep what its agent left uncommitted\n"


_CALLING = re.compile(r"@(?=\w)|#(?=\d)|(?<=\bGH)-(?=\d)|:(?=//)", re.ASCII | re.IGNORECASE)


def neutral(text: str) -> str:
    """Return foreign text in which a forge finds no name to notify and no issue to close.

    A blank comes behind each sign that would call: `@ name`, `# 12`. Quoting alone would not do,
    since a squashed commit takes title and body over as they are.
    """
    return _CALLING.sub(lambda sign: f"{sign[0]} ", text)


def _quoted(gap: Gap) -> str:
    """Return title and criteria in a fence that nothing in them can close."""
    criteria = [f"- {_cut(on_one_line(one), CRITERION_LIMIT)}" for one in gap.acceptance[:CRITERIA]]
    if len(gap.acceptance) > CRITERIA:
        criteria.append(f"- and {len(gap.acceptance) - CRITERIA} more")
    title = _cut(on_one_line(gap.title), CRITERION_LIMIT) or "no title"
    text = neutral("\n".join((title, *criteria)))
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{plain(text)}\n{fence}"


def _code(text: str) -> str:
    """Return a name as code in a cell of a table; empty stays empty."""
    shown = _cut(neutral(on_one_line(text)).replace("`", "'").replace("|", "/"), CELL_LIMIT)
    return f"`{shown}`" if shown.strip() else ""


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
