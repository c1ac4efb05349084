"""Folds a stream of JSON events into one report, whatever else stands between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import replace
from datetime import datetime
from typing import TypedDict, Unpack

from chump_orchestrator.adapters.backends.answers import kept, pull_in, pull_of
from chump_orchestrator.adapters.backends.json_lines import LONGEST_LINE, Event, event
from chump_orchestrator.core.testimony import Report, Usage

ASIDE = 2048
ASIDE_LINES = 64
"""Characters and lines kept of what is no event: a wrapper's own words, or a crash."""


class Changes(TypedDict, total=False):
    """What of a report an event may change directly."""

    session: str
    model: str
    usage: Usage
    tool_calls: int
    activity: str
    pull_number: int | None
    answer: str
    resets_at: datetime | None


class StreamReader(ABC):
    """A reader whose kind of agent prints an object a line; `take` understands one of them."""

    longest_line = LONGEST_LINE

    def __init__(self) -> None:
        self.report = Report(is_stream=True)
        self._aside: deque[str] = deque(maxlen=ASIDE_LINES)
        self._is_behind = False

    def read(self, line: str) -> Report | None:
        """Take a line; return the report if the line has changed it.

        What is no event is only put into it at the next one, or at the end: there may be much.
        """
        before = self.report
        found, rest = event(line)
        if rest:
            self.put_aside(rest)
        if found is not None:
            self.take(found)
        if self._is_behind and (found is not None or not line):
            self._is_behind = False
            self.report = replace(self.report, aside=kept("\n".join(self._aside))[-ASIDE:])
        return self.report if self.report is not before else None

    @abstractmethod
    def take(self, found: Event) -> None:
        """Change the report as an event says; of an event that is not known, leave it."""

    def tell(self, **changes: Unpack[Changes]) -> None:
        """Lay changes over the report."""
        self.report = replace(self.report, **changes)

    def step(self, activity: str = "", /, **changes: Unpack[Changes]) -> None:
        """Note that the agent got on, and with what; whatever had gone wrong has passed."""
        before = self.report
        changes["activity"] = activity or before.activity
        self.report = replace(before, steps=before.steps + 1, failure="", **changes)

    def call(self, tool: str) -> None:
        """Note that the agent has called a tool."""
        self.step(tool or "a tool", tool_calls=self.report.tool_calls + 1)

    def answer(self, text: str) -> None:
        """Note what the agent says, which is its answer until it says more."""
        answer = kept(text)
        self.step("answering", answer=answer, pull_number=pull_of(answer) or self._pull())

    def speak(self, text: str) -> None:
        """Note what the agent says in the middle of its work."""
        said = pull_in(text)
        number = said.pull_number if said else None
        self.step("thinking", answer=kept(text), pull_number=number or self._pull())

    def fail(self, text: str, **changes: Unpack[Changes]) -> None:
        """Note what has gone wrong, in the agent's own words; empty ones change nothing."""
        failure = kept(text)
        if failure:
            self.report = replace(self.report, failure=failure, **changes)

    def use(self, usage: Usage) -> None:
        """Note what the agent has used in all; what it does not say stays as it was."""
        self.tell(usage=usage.or_else(self.report.usage))

    def turn(self) -> None:
        """Note that the agent has begun another turn, where it does not count them itself."""
        self.use(Usage(turns=(self.report.usage.turns or 0) + 1))

    def _pull(self) -> int | None:
        return self.report.pull_number

    def put_aside(self, text: str) -> None:
        """Keep the end of what is no event, or one that says nothing of its own."""
        if text:
            self._aside.append(text[:ASIDE])
            self._is_behind = True
