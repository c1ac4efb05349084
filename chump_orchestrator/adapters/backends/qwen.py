"""Qwen Code, unattended, with a stream like claude's.

An error of its API ends it with status 0 and a result that is no error: the text of the answer
gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.options import (
    BackendOptions,
    lead_for,
    option,
    provider,
)
from chump_orchestrator.adapters.backends.stream_json import StreamJsonReader
from chump_orchestrator.core.dispatch import SESSION, Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

QWEN_VARIABLES = ("QWEN_*", "OPENAI_*", "DASHSCOPE_*", "BAILIAN_*")


@dataclass(frozen=True, slots=True)
class Qwen:
    """Qwen Code with the brief on its standard input, and an OpenAI-compatible provider."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "qwen"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--session-id", SESSION)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--resume", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        model = options.model_for(route)
        return Command(
            programs=options.programs("qwen"),
            args=(
                "--output-format",
                "stream-json",
                "--yolo",
                "--auth-type",
                "openai",
                *session,
                *option("--model", model),
                *options.extra_args,
            ),
            env={**options.env, **({"OPENAI_MODEL": model} if model else {})},
            env_from=provider(route.provider_pfx, "OPENAI_BASE_URL", "OPENAI_API_KEY"),
            pass_env=(*QWEN_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamJsonReader:
        return StreamJsonReader()
