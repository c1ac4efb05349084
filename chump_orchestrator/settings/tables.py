"""The tables of the settings file: every key, what it may hold, and its default (behaviour C5).

The classes mirror the tables one by one; the whole, and the keys without a table, is `Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import timedelta
from types import MappingProxyType
from typing import TypeVar

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.routing import canonical_backend
from chump_orchestrator.settings import rules
from chump_orchestrator.settings.choices import (
    AutoMerge,
    LogFormat,
    LogLevel,
    OnFailedChecks,
    OnSignal,
    PickKind,
    PickOrder,
    ShipBy,
    Uncommitted,
)
from chump_orchestrator.settings.passed import passed_complaint
from chump_orchestrator.settings.rules import Rule

T = TypeVar("T")

_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_DAYS = rules.whole(0, 3650)
TIMES = rules.whole(1, 1000)
SWITCH = rules.switch()
_MOMENTS = rules.duration(timedelta(milliseconds=1))
_SECONDS = rules.duration(_SECOND)
_DOLLARS = rules.number(0, 1_000_000)
COMMIT = rules.line('a branch, tag or commit, such as "origin/main", or ""', rules.commit_complaint)
PASSED = rules.listing(
    rules.line("", passed_complaint), 'names of variables, * for any text, such as ["NPM_*"]'
)
_ARGUMENTS = rules.listing(rules.argument(), 'texts, such as ["--verbose"]')
_SIGNALS = rules.listing(rules.signal(), f"{', '.join(rules.SIGNALS)}, at least one", least=1)
_PATTERNS = rules.listing(rules.path(""), 'patterns of file names, such as [".env*"]')
_IDENTITY = rules.line(
    "a name or an address as git has it, or nothing for git's own", rules.identity_complaint
)
_FILE = rules.path("a path, absolute or relative to the repository", empty=True)
_PROGRAM = rules.path('a name on PATH or a path, such as "/opt/bin/claude", or ""', empty=True)
PLUG_IN = rules.name("the name of an installed one", r"[A-Za-z0-9][\w-]*", "this is no name")
BACKEND = Rule(lambda v: canonical_backend(str(PLUG_IN.read(v))), PLUG_IN.valid, rules.toml)
MODEL = rules.name('the name of a model, or ""', r"([^-\s]\S*)?", "this is no name of a model")
PROVIDER = rules.name(
    'capital letters, such as "TOGETHER", or ""', r"([A-Z][A-Z0-9_]*)?", "this is no prefix"
)
CLASS = rules.name('a task class, such as "research"', r"\w[\w.-]*", "this is no task class")


def key(default: T, rule: Rule) -> T:
    """Declare a key of the file: its default, and what it may hold instead."""
    declared: T = field(default=default, metadata={"rule": rule})
    return declared


@dataclass(frozen=True, slots=True)
class Backlog:
    """Where the gaps stand; an empty `ref` means the work tree (behaviour B1, B5)."""

    path: str = key("docs/gaps.yaml", rules.place("a file or folder"))
    ref: str = key("", COMMIT)


@dataclass(frozen=True, slots=True)
class Pick:
    """Which gaps may be dispatched, and in which order (behaviour K1 to K3)."""

    kind: PickKind = key(PickKind.USER, rules.word(PickKind))
    priorities: tuple[Priority, ...] = key(
        (Priority.P0, Priority.P1, Priority.P2), rules.words(Priority, least=1)
    )
    exclude_efforts: tuple[Effort, ...] = key((Effort.XL,), rules.words(Effort))
    order: PickOrder = key(PickOrder.EFFORT, rules.word(PickOrder))
    require_opt_in: bool = key(default=False, rule=SWITCH)
    bias_threshold: float = key(0.8, rules.number(0, 1))
    bias_window: int = key(10, TIMES)
    repeat: timedelta = key(timedelta(hours=24), _SECONDS)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Soft deadlines by effort, and what follows on them (behaviour P1, P2)."""

    xs: timedelta = key(timedelta(minutes=20), _MOMENTS)
    s: timedelta = key(timedelta(minutes=20), _MOMENTS)
    m: timedelta = key(timedelta(minutes=60), _MOMENTS)
    l: timedelta = key(timedelta(minutes=180), _MOMENTS)  # noqa: E741 - the effort's own name
    xl: timedelta = key(timedelta(minutes=360), _MOMENTS)
    unknown: timedelta = key(timedelta(minutes=60), _MOMENTS)
    grace: timedelta = key(timedelta(seconds=30), _MOMENTS)
    silent: timedelta = key(timedelta(minutes=5), _MOMENTS)

    @property
    def soft(self) -> Mapping[Effort, timedelta]:
        """The soft deadline of every effort."""
        return {effort: getattr(self, effort.value) for effort in Effort}


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What one backend is told. Empty text or an empty list leaves it to the backend."""

    program: str = key("", _PROGRAM)
    model: str = key("", MODEL)
    extra_args: tuple[str, ...] = key((), _ARGUMENTS)
    argv: tuple[str, ...] = key((), _ARGUMENTS)
    pass_env: tuple[str, ...] = key((), PASSED)
    stop_signals: tuple[str, ...] = key(("INT", "TERM"), _SIGNALS)
    fallback_model: str = key("", MODEL)
    max_turns: int = key(0, rules.whole(0, 100_000))
    max_budget_usd: float = key(0.0, rules.number(0, 100_000))
    max_retries: int = key(8, rules.whole(0, 100))
    api_timeout: timedelta = key(timedelta(minutes=3), rules.duration(_SECOND, _HOUR))


CLAUDES_OPTIONS = ("fallback_model", "max_turns", "max_budget_usd", "max_retries", "api_timeout")

FOREIGN_OPTIONS = {
    "claude": ("argv",),
    "custom": ("program", "extra_args", *CLAUDES_OPTIONS),
    **dict.fromkeys(
        ("chump-local", "codex", "gemini", "opencode", "goose", "qwen", "aider"),
        ("argv", *CLAUDES_OPTIONS),
    ),
}
"""Options that would mean nothing to these backends, and are therefore unknown to them."""


def no_options() -> Mapping[str, BackendOptions]:
    """Return the tables of backends that are there without being written."""
    return MappingProxyType({"claude": BackendOptions(), "custom": BackendOptions()})


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The default backend, and the options of those that have any, by registered name."""

    use: str = key("claude", BACKEND)
    options: Mapping[str, BackendOptions] = field(default_factory=no_options)

    def of(self, name: str) -> BackendOptions:
        """Return the options of one backend, defaults when it has no table."""
        return self.options.get(name) or BackendOptions()


@dataclass(frozen=True, slots=True)
class Commits:
    """Whom agents' commits are by, empty for whom git says, and signed or not (behaviour D5)."""

    author_name: str = key("Chump Dispatched", _IDENTITY)
    author_email: str = key("chump-dispatch@chump.bot", _IDENTITY)
    sign: bool = key(default=False, rule=SWITCH)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template of the user's that replaces the whole brief; empty for none (behaviour D7)."""

    template: str = key("", _FILE)


@dataclass(frozen=True, slots=True)
class Pulls:
    """How pull requests are watched (behaviour P3 to P8, P10)."""

    use: str = key("gh", PLUG_IN)
    interval: timedelta = key(timedelta(seconds=30), rules.duration(_SECOND, _HOUR))
    ci_grace: timedelta = key(timedelta(minutes=30), _SECONDS)
    deadline: timedelta = key(timedelta(hours=24), _SECONDS)
    on_failed_checks: OnFailedChecks = key(OnFailedChecks.WAIT, rules.word(OnFailedChecks))


FORBIDDEN_PATHS = (
    ".github/workflows/*",
    ".github/actions/*",
    ".gitlab-ci.yml",
    "CODEOWNERS",
    ".env*",
    "!.env*example",
    "!.env*sample",
    "!.env*template",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    ".netrc",
    ".git-credentials",
)
"""What runs with the repository's own secrets or says who must review, and where keys are kept."""


@dataclass(frozen=True, slots=True)
class Ship:
    """Who ships, what is not shipped, and what a request is given (behaviour P9)."""

    by: ShipBy = key(ShipBy.AGENT, rules.word(ShipBy))
    uncommitted: Uncommitted = key(Uncommitted.FAIL, rules.word(Uncommitted))
    forbidden_paths: tuple[str, ...] = key(
        FORBIDDEN_PATHS,
        rules.listing(
            rules.line("", rules.pattern_complaint), 'patterns of paths, such as ["*.pem"]'
        ),
    )
    allow: tuple[str, ...] = key(
        (),
        rules.listing(
            rules.line("", rules.pattern_complaint),
            'patterns of paths, or of texts that are no secrets, such as ["tests/keys/*"]',
        ),
    )
    draft: bool = key(default=False, rule=SWITCH)
    labels: tuple[str, ...] = key(
        (), rules.listing(rules.line("", rules.label_complaint), 'labels, such as ["agent"]')
    )
    auto_merge: AutoMerge = key(AutoMerge.NO, rules.word(AutoMerge))


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a gap is tried, and how long is waited in between (behaviour X1)."""

    max_attempts: int = key(2, rules.whole(1, 100))
    base: timedelta = key(timedelta(seconds=10), _MOMENTS)
    cap: timedelta = key(timedelta(minutes=5), _MOMENTS)


@dataclass(frozen=True, slots=True)
class Brake:
    """What a gap may take without accepted progress before it is parked (behaviour X2)."""

    sessions: int = key(3, TIMES)
    usd: float = key(0.0, _DOLLARS)


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent on a gap, and in a day; 0 stands for no limit (behaviour X3)."""

    usd_per_gap: float = key(0.0, _DOLLARS)
    usd_per_day: float = key(0.0, _DOLLARS)
    tokens_per_day: int = key(0, rules.whole(0, 10**15))


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing table's file, task classes by beginning of id, and learning (G1, G2, G4)."""

    table: str = key("docs/dispatch/routing.yaml", rules.place("a file"))
    learn: bool = key(default=False, rule=SWITCH)
    classes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Worktrees:
    """Where agents work, and what is kept of it; `min_free` is in bytes (behaviour D1)."""

    base: str = key(".claude/worktrees", rules.place("a folder"))
    prefix: str = key(
        "claude/",
        rules.line('the beginning of a branch, such as "claude/"', rules.prefix_complaint),
    )
    keep_days: int = key(7, _DAYS)
    keep_ignored: tuple[str, ...] = key((".env*", "*.local"), _PATTERNS)
    min_free: int = key(2 * 2**30, rules.size())
    prepared: int = key(2, rules.whole(0, 64))


@dataclass(frozen=True, slots=True)
class Leases:
    """Where leases lie and how long they last (behaviour L1)."""

    dir: str = key(".chump-locks", rules.place("a folder"))
    ttl: timedelta = key(timedelta(hours=4), rules.duration(_MINUTE))


@dataclass(frozen=True, slots=True)
class Journal:
    """The databases that are shared with other tools (behaviour R1, R5)."""

    enabled: bool = key(default=True, rule=SWITCH)
    reflections: str = key("sessions/chump_memory.db", rules.place("a file"))
    routing: str = key(".chump/state.db", rules.place("a file"))


@dataclass(frozen=True, slots=True)
class Lessons:
    """Whether lessons of past reflections are put into briefs (behaviour R7)."""

    enabled: bool = key(default=True, rule=SWITCH)


@dataclass(frozen=True, slots=True)
class Secrets:
    """The file of secrets; the default one may be missing, and empty stands for none."""

    file: str = key(".chump/secrets.env", _FILE)


@dataclass(frozen=True, slots=True)
class State:
    """The orchestrator's own folder, and for how many days logs of settled dispatches stay."""

    dir: str = key(".chump/orchestrator", rules.place("a folder"))
    keep_days: int = key(30, _DAYS)


@dataclass(frozen=True, slots=True)
class Stop:
    """How the daemon ends."""

    on_signal: OnSignal = key(OnSignal.TEARDOWN, rules.word(OnSignal))


@dataclass(frozen=True, slots=True)
class Log:
    """How the daemon's own log looks; an empty `file` is none, `max_size` is in bytes."""

    format: LogFormat = key(LogFormat.AUTO, rules.word(LogFormat))
    level: LogLevel = key(LogLevel.INFO, rules.word(LogLevel))
    file: str = key("", rules.place_or_absolute("a file"))
    max_size: int = key(10 * 2**20, rules.size(64 * 2**10))
    keep: int = key(3, rules.whole(1, 100))


@dataclass(frozen=True, slots=True)
class Limits:
    """What one agent may use of its machine; 0 stands for no limit, `memory` is in bytes."""

    memory: int = key(0, rules.size(64 * 2**20, empty=True))
    tasks: int = key(0, rules.whole(0, 2**22))
    cpu_weight: int = key(0, rules.whole(0, 10_000))
    required: bool = key(default=False, rule=SWITCH)
    nice: int = key(2, rules.whole(0, 19))


@dataclass(frozen=True, slots=True)
class Power:
    """Whether the machine is kept awake while agents run."""

    keep_awake: bool = key(default=True, rule=SWITCH)


@dataclass(frozen=True, slots=True)
class Http:
    """Where health, metrics and state are told; empty for nowhere."""

    listen: str = key("", rules.listening())


@dataclass(frozen=True, slots=True)
class Faults:
    """Whether faults may be injected into real work (behaviour F1)."""

    allowed: bool = key(default=False, rule=SWITCH)
