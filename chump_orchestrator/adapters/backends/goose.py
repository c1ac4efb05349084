"""goose, unattended, with its events as JSON lines.

An error of its provider ends it with status 0, often told in the voice of the model; the words with
which it begins give it away.
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

GOOSE_VARIABLES = (
    "GOOSE_*",
    "OPENAI_*",
    "ANTHROPIC_*",
    "GOOGLE_*",
    "GEMINI_*",
    "DATABRICKS_*",
    "OPENROUTER_*",
    "OLLAMA_*",
    "AZURE_*",
    "AWS_*",
    "XAI_*",
)

_ERRORS = ("Ran into this error:", "Network error:")


@dataclass(frozen=True, slots=True)
class Goose:
    """goose with the brief on its standard input, its developer tools, and a named session."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "goose"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--name", SESSION)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--resume", "--name", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        without_provider(route)
        return Command(
            programs=options.programs("goose"),
            args=(
                "run",
                *session,
                "--with-builtin",
                "developer",
                "--output-format",
                "stream-json",
                "-q",
                *option("--model", options.model_for(route)),
                *options.extra_args,
                "-i",
                "-",
            ),
            env={"GOOSE_MODE": "auto", **options.env},
            pass_env=(*GOOSE_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamReader:
        return GooseReader()


class GooseReader(StreamReader):
    """Reads one agent; pieces of what it says in one turn are joined."""

    def __init__(self) -> None:
        super().__init__()
        self._said = ""
        self._is_its_turn = False

    def take(self, found: Event) -> None:
        match its.text(found, "type"):
            case "message":
                message = its.part(found, "message")
                parts = its.items(message, "content")
                if its.text(message, "role") == "assistant":
                    self._turn()
                    for one in parts:
                        self._spoken(one)
                else:
                    self._is_its_turn = False
                    self.step()
            case "complete":
                tokens = its.count(found, "total_tokens")
                self.use(Usage(its.money(found, "cost_usd"), tokens))
            case "error":
                self.fail(its.text(found, "error"), answer="", activity="failed")
            case _:
                pass

    def _turn(self) -> None:
        if not self._is_its_turn:
            self._is_its_turn, self._said = True, ""
            self.turn()

    def _spoken(self, one: Event) -> None:
        match its.text(one, "type"):
            case "text":
                self._said = (self._said + its.text(one, "text"))[-2 * WORDS :]
                if self._said.startswith(_ERRORS):
                    self.fail(self._said, answer="", activity="failed")
                else:
                    self.answer(self._said)
            case "toolRequest":
                self._said = ""
                self.call(its.name(one, "toolCall", "value", "name"))
            case "error":
                self.fail(its.text(one, "message"), answer="", activity="failed")
            case _:
                self.step("thinking")
