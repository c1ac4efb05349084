"""Who does the work: the command line of each kind of agent; nothing is started here (A1 to A4)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from chump_orchestrator.core.dispatch import Command
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Gap
from chump_orchestrator.core.records import Progress, Usage
from chump_orchestrator.core.routing import Route

CLAUDE_PROGRAMS = ("scripts/coord/claude-retry.sh", "scripts/claude-retry.sh", "claude")

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
CHUMP_VARIABLES = ("OPENAI_*", "CHUMP_*")
"""What each needs of the daemon's environment (behaviour D5). The orchestrator's own variables
are never passed, whatever these patterns match."""

PARENTS = 4
"""How many folders above the worktree are searched for a chump that was built there."""

_PULL = re.compile(r"(?:#|https?://[^\s/]+/\S+/pull/)?(\d{1,9})/?", re.ASCII)
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_EARLY = re.compile(r"\{(gap|model)\}")


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What the operator says of one backend; empty leaves it to the backend.

    `program` takes the place of the usual candidates. `argv` is for `custom` alone. `env` is set
    for the agent as it stands, `pass_env` names what else may come from the daemon's.
    """

    program: str = ""
    model: str = ""
    extra_args: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    stop_signals: tuple[str, ...] = ("INT", "TERM")
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Claude:
    """Claude Code, unattended, the brief on its standard input."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "claude"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        options = self.options
        model = _model(route, options)
        return Command(
            programs=(options.program,) if options.program else CLAUDE_PROGRAMS,
            args=(
                "-p",
                "--dangerously-skip-permissions",
                *(("--model", model) if model else ()),
                *options.extra_args,
            ),
            env=dict(options.env),
            pass_env=(*CLAUDE_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
        )

    def read(self, line: str) -> Usage | Progress | None:
        # It prints plain text, as it is run; a stream of JSON would be understood here.
        return pull_in(line)


@dataclass(frozen=True, slots=True)
class ChumpLocal:
    """A chump that was built here, with an OpenAI-compatible provider of the route's choice."""

    options: BackendOptions = field(default_factory=BackendOptions)

    @property
    def label(self) -> str:
        return "chump-local"

    def command(self, gap: Gap, route: Route, prompt: str) -> Command:  # noqa: ARG002
        options = self.options
        model = _model(route, options)
        return Command(
            programs=(options.program,) if options.program else _built_programs(),
            args=("--execute-gap", gap.id, *options.extra_args),
            env={
                **options.env,
                "CHUMP_DISPATCH_BACKEND_LABEL": self.label,
                **({"OPENAI_MODEL": model} if model else {}),
            },
            env_from=_provider(route.provider_pfx),
            pass_env=(*CHUMP_VARIABLES, *options.pass_env),
            stop_signals=options.stop_signals,
        )

    def read(self, line: str) -> Usage | Progress | None:
        return pull_in(line)


@dataclass(frozen=True, slots=True)
class Custom:
    """Any program, by the operator's own argument vector.

    `{gap}` and `{model}` are filled in here, `{prompt_file}`, `{worktree}` and `{branch}` where
    the agent will run. It has the brief on standard input unless `{prompt_file}` is among them.
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
        values = {"gap": gap.id, "model": _model(route, options)}
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


def pull_in(line: str) -> Progress | None:
    """Return the pull request that a line names and nothing else, or `None`.

    `412`, `#412` and an address that ends in `/pull/412` are such lines. It is the agent's word
    alone, a reason to look at the forge.
    """
    found = _PULL.fullmatch(line.strip(" \t\r\n*`<>."))
    number = int(found[1]) if found else 0
    return Progress(pull_number=number) if number else None


def _model(route: Route, options: BackendOptions) -> str:
    model = route.model or options.model
    if model.startswith("-"):
        raise ConfigError(f"model {model[:80]!r}: a name that begins with - would be an option")
    return model


def _provider(prefix: str) -> Mapping[str, str]:
    """Say from which variables the provider's address and key come (behaviour A2)."""
    if not prefix:
        return {}
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"provider_pfx {prefix[:80]!r}: expected the beginning of a variable's name, such as"
            " TOGETHER for TOGETHER_API_BASE and TOGETHER_API_KEY"
        )
    return {"OPENAI_API_BASE": f"{prefix}_API_BASE", "OPENAI_API_KEY": f"{prefix}_API_KEY"}


def _built_programs() -> tuple[str, ...]:
    above = ("../" * up for up in range(PARENTS + 1))
    built = (f"{up}target/{kind}/chump" for up in above for kind in ("release", "debug"))
    return (*built, "chump")
