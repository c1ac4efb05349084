"""Gemini's command line, unattended, with its events as JSON lines.

Its exit status says little: 0 after TERM and INT, and for an error the status of the answer, less
what goes beyond 8 bits. Whole errors stand on standard error as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chump_orchestrator.adapters.backends import json_lines as its
from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.json_lines import Event
from chump_orchestrator.adapters.backends.options import (
    BackendOptions,
    lead_for,
    option,
    without_provider,
)
from chump_orchestrator.adapters.backends.streams import StreamReader
from chump_orchestrator.core.dispatch import SESSION, Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import WORDS, Progress, Usage

GEMINI_VARIABLES = ("GEMINI_*", "GOOGLE_*", "CLOUDSDK_*")


@dataclass(frozen=True, slots=True)
class Gemini:
    """Gemini with the brief on its standard input."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "gemini"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--session-id", SESSION)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--resume", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        without_provider(route)
        return Command(
            programs=options.programs("gemini"),
            args=(
                "--output-format",
                "stream-json",
                "--yolo",
                "--skip-trust",
                *session,
                *option("--model", options.model_for(route)),
                *options.extra_args,
            ),
            env=dict(options.env),
            pass_env=(*GEMINI_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamReader:
        return GeminiReader()


class GeminiReader(StreamReader):
    """Reads one agent; what it says comes in pieces, which are joined up to its next tool."""

    def __init__(self) -> None:
        super().__init__()
        self._said = ""
        self._is_its_turn = False

    def take(self, found: Event) -> None:
        match its.text(found, "type"):
            case "init":
                self.step(
                    "starting",
                    session=its.name(found, "session_id"),
                    model=its.name(found, "model"),
                )
            case "message" if its.text(found, "role") == "assistant":
                self._turn()
                is_more = its.part(found, "delta") is True
                self._said = (self._said if is_more else "") + its.text(found, "content")
                self._said = self._said[-2 * WORDS :]
                self.answer(self._said)
            case "tool_use":
                self._turn()
                self._said = ""
                self.call(its.name(found, "tool_name"))
            case "tool_result":
                self._is_its_turn = False
                self.step()
            case "error":
                message = its.text(found, "message")
                if its.text(found, "severity") == "warning":
                    self.put_aside(message)
                else:
                    self.fail(message)
            case "result":
                self._result(found)
            case _:
                pass

    def _turn(self) -> None:
        if not self._is_its_turn:
            self._is_its_turn = True
            self.turn()

    def _result(self, found: Event) -> None:
        self.use(Usage(tokens=its.count(found, "stats", "total_tokens")))
        if its.text(found, "status") == "error":
            message = its.text(found, "error", "message") or self.report.failure
            self.fail(message or "failed", answer="", activity="failed")
        else:
            self.step("done")
