"""Claude Code, unattended: its stream of JSON is read, its session is the dispatch's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.options import BackendOptions, lead_for, option
from chump_orchestrator.adapters.backends.stream_json import StreamJsonReader
from chump_orchestrator.core.dispatch import SESSION, Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

PROGRAMS = ("scripts/coord/claude-retry.sh", "scripts/claude-retry.sh", "claude")
"""A repository's own wrappers go first; they get the same arguments."""

CLAUDE_VARIABLES = (
    "ANTHROPIC_*",
    "CLAUDE_*",
    "DISABLE_*",
    "API_TIMEOUT_MS",
    "IS_SANDBOX",
    "AWS_*",
    "GOOGLE_*",
    "CLOUD_ML_REGION",
)
"""What it needs of the daemon's environment (behaviour D5). The orchestrator's own variables are
never passed, whatever these patterns match."""


@dataclass(frozen=True, slots=True)
class Claude:
    """Claude Code with the brief on its standard input."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "claude"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--session-id", SESSION)

    def resume_command(self, gap: Gap, route: Route, prompt: str, session: str) -> Command:  # noqa: ARG002
        return self._command(route, prompt, "--resume", session)

    def _command(self, route: Route, prompt: str, *session: str) -> Command:
        options = self.options
        return Command(
            programs=options.programs(*PROGRAMS),
            args=(
                "-p",
                "--output-format",
                "stream-json",
                "--verbose",
                "--dangerously-skip-permissions",
                *session,
                *option("--model", options.model_for(route)),
                *option("--fallback-model", options.fallback_model),
                *option("--max-turns", options.max_turns),
                *option("--max-budget-usd", options.max_budget_usd),
                *options.extra_args,
            ),
            env={**dict(_patience(options)), **options.env},
            pass_env=(*CLAUDE_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
            brief_prefix=lead_for(prompt),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)

    def reader(self) -> StreamJsonReader:
        return StreamJsonReader()


def _patience(options: BackendOptions) -> Iterator[tuple[str, str]]:
    """Yield the variables that say how long a dead or silent endpoint may hold a slot."""
    if options.max_retries is not None:
        yield "CLAUDE_CODE_MAX_RETRIES", str(options.max_retries)
    if options.api_timeout is not None:
        yield "API_TIMEOUT_MS", str(round(options.api_timeout / timedelta(milliseconds=1)))
