"""Any program, by the operator's own argument vector."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from chump_orchestrator.adapters.backends.answers import pull_in
from chump_orchestrator.adapters.backends.options import BackendOptions
from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.routing import Route
from chump_orchestrator.core.testimony import Progress, Usage

_EARLY = re.compile(r"\{(gap|model)\}")


@dataclass(frozen=True, slots=True)
class Custom:
    """The operator's own agent.

    `{gap}` and `{model}` are filled in here, `{prompt_file}`, `{worktree}` and `{branch}` where
    the agent will run, and there too an argument that is `{session}` and nothing else. It has the
    brief on standard input unless `{prompt_file}` is among them.
    """

    options: BackendOptions = field(default_factory=BackendOptions)

    def __post_init__(self) -> None:
        if not self.options.argv or not self.options.argv[0].strip():
            raise ConfigError(
                "backend.custom.argv: empty; write the program and its arguments, such as"
                ' ["my-agent", "--brief", "{prompt_file}"]'
            )

    @property
    def label(self) -> str:
        return "custom"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        options = self.options
        values = {"gap": gap.id, "model": options.model_for(route)}
        program, *args = (_EARLY.sub(lambda found: values[found[1]], word) for word in options.argv)
        # A program's path is taken relative to the worktree as it is.
        inside = program.removeprefix("{worktree}/")
        return Command(
            programs=(program if inside == program else f"./{inside}",),
            args=tuple(args),
            env=dict(options.env),
            pass_env=options.pass_env,
            stop_signals=options.stop_signals,
            expand=True,
            brief_on_stdin=not any("{prompt_file}" in word for word in options.argv),
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)
