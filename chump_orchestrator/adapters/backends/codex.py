"""Codex, unattended, with its events as JSON lines.

An `error` event may be one that it gets over, such as a connection that it tries again;
`turn.failed` is one that it did not. With a connection that is refused it waits for ever, and only
the deadline ends it.
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

CODEX_VARIABLES = ("CODEX_*", "OPENAI_*", "AZURE_OPENAI_*")

_TALK = ("agent_message", "reasoning", "todo_list", "error")
"""Items that are no tools."""


@dataclass(frozen=True, slots=True)
class Codex:
    """Codex with the brief on its standard input."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "codex"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "resume", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        without_provider(route)
        return Command(
            programs=options.programs("codex"),
            args=(
                "exec",
                "--json",
                "--dangerously-bypass-approvals-and-sandbox",
                *option("--model", options.model_for(route)),
                *options.extra_args,
                *session,
                "-",
            ),
            env=dict(options.env),
            pass_env=(*CODEX_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamReader:
        return CodexReader()


class CodexReader(StreamReader):
    """Reads one agent; its usage comes at the end of a turn, for the session so far."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = ""

    def take(self, found: Event) -> None:
        match its.text(found, "type"):
            case "thread.started":
                self.step("starting", session=its.name(found, "thread_id"))
            case "turn.started":
                self.step("thinking")
                self.turn()
            case "item.started" | "item.completed" as kind:
                self._item(its.part(found, "item"), is_done=kind == "item.completed")
            case "item.updated":
                self.step()
            case "turn.completed":
                self.step("done")
                usage = its.part(found, "usage")
                self.use(Usage(tokens=its.total(usage, "input_tokens", "output_tokens")))
            case "turn.failed":
                self.fail(its.text(found, "error", "message"), answer="", activity="failed")
            case "error":
                message = its.text(found, "message")
                self.fail(message, activity=its.name(found, "message"))
            case _:
                pass

    def _item(self, item: object, *, is_done: bool) -> None:
        kind, key = its.name(item, "type"), its.name(item, "id")
        if kind == "error":
            self.put_aside(its.text(item, "message"))
        elif kind == "agent_message":
            if is_done:
                self.answer(its.text(item, "text"))
        elif kind in _TALK:
            self.step("thinking")
        elif key and key == self._begun:
            self.step()
        else:
            self._begun = key
            self.call(kind)
