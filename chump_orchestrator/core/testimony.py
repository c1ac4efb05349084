"""What an agent tells of itself while it works, who understands it, and how it adds up."""

from __future__ import annotations

from dataclasses import field, replace
from datetime import datetime
from typing import Protocol, TypeVar, runtime_checkable

from chump_orchestrator.core.deferred import dataclass

Number = TypeVar("Number", int, float)

WORDS = 4096
"""Characters kept of each text of an agent's; of longer ones the end, where the answer stands."""


@dataclass(frozen=True, slots=True)
class Progress:
    """An agent's own word on how far it is; `pull_number` when it names its pull request."""

    pull_number: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an agent reports to have used; `None` where it does not say.

    `tokens` are all that were processed: read, written, and taken from a cache.
    """

    cost_usd: float | None = None
    tokens: int | None = None
    turns: int | None = None

    def or_else(self, before: Usage) -> Usage:
        """Return what this says, and where it does not, what was said before."""
        return Usage(
            before.cost_usd if self.cost_usd is None else self.cost_usd,
            before.tokens if self.tokens is None else self.tokens,
            before.turns if self.turns is None else self.turns,
        )

    def plus(self, more: Usage) -> Usage:
        """Return both together; what neither says stays unknown."""
        return Usage(
            _sum(self.cost_usd, more.cost_usd),
            _sum(self.tokens, more.tokens),
            _sum(self.turns, more.turns),
        )


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an agent has told so far; empty, 0 and `None` stand for nothing.

    `usage` is in total; of an agent that works it may be less than it has used. `steps` counts
    the signs that it gets on, which a request that is tried again is not; `activity` is the last
    of what it did, such as the name of a tool, and `active_at` when that was seen, in UTC.
    `answer` is what it said last, `failure` what it says has gone wrong, and `aside` the end of
    what it printed beside its events. `resets_at` is when its account may be used again, in UTC,
    told with a limit that was reached. With `is_stream` these texts are all that its output says
    about a failure; otherwise the output itself is looked through.
    """

    session: str = ""
    model: str = ""
    usage: Usage = field(default_factory=Usage)
    tool_calls: int = 0
    steps: int = 0
    activity: str = ""
    active_at: datetime | None = None
    pull_number: int | None = None
    answer: str = ""
    failure: str = ""
    aside: str = ""
    resets_at: datetime | None = None
    is_stream: bool = False

    @property
    def words(self) -> str:
        """All that may tell why it failed."""
        return "\n".join(filter(None, (self.failure, self.aside, self.answer)))

    def facts(self) -> dict[str, object]:
        """Return what `status --json` and `history --json` tell of it (behaviour C6)."""
        at = self.active_at
        return {
            "cost_usd": self.usage.cost_usd,
            "tokens": self.usage.tokens,
            "turns": self.usage.turns,
            "tool_calls": self.tool_calls if self.is_stream else None,
            "session": self.session or None,
            "activity": self.activity or None,
            "activity_at": at and f"{at:%Y-%m-%dT%H:%M:%SZ}",
            "trouble": self.failure or None,
        }

    def after(self, said: Said) -> Report:
        """Return the report with what a line has added to it.

        A whole report stands for itself, but for a session that it does not know yet; usage and
        progress are laid over what is known.
        """
        match said:
            case Report(session=session):
                return said if session else replace(said, session=self.session)
            case Usage():
                return replace(self, usage=said.or_else(self.usage), steps=self.steps + 1)
            case Progress():
                return replace(
                    self,
                    pull_number=said.pull_number or self.pull_number,
                    activity=said.text or self.activity,
                    steps=self.steps + 1,
                )
            case None:
                return self


Said = Report | Usage | Progress | None
"""What a line of output may tell: everything so far, something, or nothing."""


class Reader(Protocol):
    """Understands the standard output of one agent; made for it alone, so it may remember."""

    @property
    def longest_line(self) -> int:
        """How many bytes of a line are wanted, 1 MiB at most; the rest of a longer one is cut."""
        ...

    def read(self, line: str) -> Said:
        """Take the next line of standard output, bytes that are not UTF-8 replaced.

        A `Report` stands for all that is known so far; `Usage` and `Progress` are laid over it;
        `None` adds nothing. When the stream has ended, one empty line comes. After a re-attachment
        all lines come again, to a new reader, of a long stream those in its middle missing.
        Whatever a line holds, nothing is raised.
        """
        ...


@runtime_checkable
class MakesReaders(Protocol):
    """A backend whose agents print more than single lines can tell."""

    def reader(self) -> Reader:
        """Return a reader for the output of one agent, from its first line on."""
        ...


def _sum(one: Number | None, other: Number | None) -> Number | None:
    return other if one is None else one if other is None else one + other
