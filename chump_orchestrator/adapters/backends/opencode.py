"""opencode, unattended, with its events as JSON lines: tokens and cost come with each step.

It says nothing while it tries a request again, which it does without end.
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
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

OPENCODE_VARIABLES = (
    "OPENCODE_*",
    "ANTHROPIC_*",
    "OPENAI_*",
    "GEMINI_*",
    "GOOGLE_*",
    "OPENROUTER_*",
    "AZURE_*",
    "AWS_*",
    "DEEPSEEK_*",
    "GROQ_*",
    "MISTRAL_*",
    "XAI_*",
)


@dataclass(frozen=True, slots=True)
class Opencode:
    """opencode with the brief on its standard input; a model is named `provider/model`."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "opencode"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--session", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        without_provider(route)
        return Command(
            programs=options.programs("opencode"),
            args=(
                "run",
                "--format",
                "json",
                "--auto",
                *session,
                *option("--model", options.model_for(route)),
                *options.extra_args,
            ),
            env=dict(options.env),
            pass_env=(*OPENCODE_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamReader:
        return OpencodeReader()


class OpencodeReader(StreamReader):
    """Reads one agent; a step is a turn, and what the steps used is added up."""

    def __init__(self) -> None:
        super().__init__()
        self._used = Usage()

    def take(self, found: Event) -> None:
        session, part = its.name(found, "sessionID"), its.part(found, "part")
        match its.text(found, "type"):
            case "step_start":
                self.step("thinking", session=session)
            case "tool_use":
                self.call(its.name(part, "tool"))
            case "text":
                self.answer(its.text(part, "text"))
            case "reasoning":
                self.step("thinking")
            case "step_finish":
                self.step()
                tokens = its.part(part, "tokens")
                one = Usage(its.money(part, "cost"), _tokens(tokens), turns=1)
                self._used = self._used.plus(one)
                self.use(self._used)
            case "error":
                self.fail(_failure(its.part(found, "error")), answer="", activity="failed")
                self.tell(session=session or self.report.session)
            case _:
                pass


def _tokens(tokens: object) -> int | None:
    whole = its.count(tokens, "total")
    if whole is not None:
        return whole
    parts = (
        its.total(tokens, "input", "output", "reasoning"),
        its.total(its.part(tokens, "cache"), "read", "write"),
    )
    known = [one for one in parts if one is not None]
    return sum(known) if known else None


def _failure(error: object) -> str:
    message = its.text(error, "data", "message") or its.name(error, "name") or "failed"
    status = its.count(error, "data", "statusCode")
    return message if status is None else f"API error {status}: {message}"
