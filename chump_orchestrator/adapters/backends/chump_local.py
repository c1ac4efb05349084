"""A chump that was built in the repository, with an OpenAI-compatible provider."""

from __future__ import annotations

from dataclasses import dataclass, field

from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.options import BackendOptions, provider
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

CHUMP_VARIABLES = ("OPENAI_*", "CHUMP_*")
"""What it needs of the daemon's environment (behaviour D5), less the orchestrator's own."""

PARENTS = 4
"""How many folders above the worktree are searched for a chump that was built there."""


@dataclass(frozen=True, slots=True)
class ChumpLocal:
    """A chump that was built here, with the provider of the route's choice."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "chump-local"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        options = self.options
        model = options.model_for(route)
        return Command(
            programs=options.programs(*_built_programs()),
            args=("--execute-gap", gap.id, *options.extra_args),
            env={
                **options.env,
                "CHUMP_DISPATCH_BACKEND_LABEL": self.label,
                **({"OPENAI_MODEL": model} if model else {}),
            },
            env_from=provider(route.provider_pfx, "OPENAI_API_BASE", "OPENAI_API_KEY"),
            pass_env=(*CHUMP_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)


def _built_programs() -> tuple[str, ...]:
    above = ("../" * up for up in range(PARENTS + 1))
    built = (f"{up}target/{kind}/chump" for up in above for kind in ("release", "debug"))
    return (*built, "chump")
