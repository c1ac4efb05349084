"""Every key of the settings file, with its default (behaviour C5).

The classes mirror the file's tables one by one; `Settings` is the whole.
"""

# ruff: noqa: RUF009 - `key` is `field` with a rule

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from chump_orchestrator.core.gap import Effort, Priority
from chump_orchestrator.core.routing import Route, canonical_backend
from chump_orchestrator.settings import rules
from chump_orchestrator.settings.choices import LogFormat, LogLevel, OnSignal, PickKind, PickOrder
from chump_orchestrator.settings.passed import passed_complaint
from chump_orchestrator.settings.rules import Key, Rule

T = TypeVar("T")

_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_DAYS = rules.whole(0, 3650)
_TIMES = rules.whole(1, 1000)
_SWITCH = rules.switch()
_MOMENTS = rules.duration(timedelta(milliseconds=1))
_SECONDS = rules.duration(_SECOND)
_COMMIT = rules.line(
    'a branch, tag or commit, such as "origin/main", or ""', rules.commit_complaint
)
_PASSED = rules.listing(
    rules.line("", passed_complaint), 'names of variables, * for any text, such as ["NPM_*"]'
)
_ARGUMENTS = rules.listing(rules.argument(), 'texts, such as ["--verbose"]')
_SIGNALS = rules.listing(rules.signal(), f"{', '.join(rules.SIGNALS)}, at least one", least=1)
_PATTERNS = rules.listing(rules.path(""), 'patterns of file names, such as [".env*"]')
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
    ref: str = key("", _COMMIT)


@dataclass(frozen=True, slots=True)
class Pick:
    """Which gaps may be dispatched, and in which order (behaviour K1 to K3)."""

    kind: PickKind = key(PickKind.USER, rules.word(PickKind))
    priorities: tuple[Priority, ...] = key(
        (Priority.P0, Priority.P1, Priority.P2), rules.words(Priority, least=1)
    )
    exclude_efforts: tuple[Effort, ...] = key((Effort.XL,), rules.words(Effort))
    order: PickOrder = key(PickOrder.EFFORT, rules.word(PickOrder))
    require_opt_in: bool = key(default=False, rule=_SWITCH)
    bias_threshold: float = key(0.8, rules.number(0, 1))
    bias_window: int = key(10, _TIMES)
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
    pass_env: tuple[str, ...] = key((), _PASSED)
    stop_signals: tuple[str, ...] = key(("INT", "TERM"), _SIGNALS)


FOREIGN_OPTIONS = {
    "claude": ("argv",),
    "chump-local": ("argv",),
    "custom": ("program", "extra_args"),
}
"""Options that would mean nothing to these backends, and are therefore unknown to them."""


def _no_options() -> Mapping[str, BackendOptions]:
    return MappingProxyType({"claude": BackendOptions(), "custom": BackendOptions()})


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """The default backend, and the options of those that have any, by registered name."""

    use: str = key("claude", BACKEND)
    options: Mapping[str, BackendOptions] = field(default_factory=_no_options)

    def of(self, name: str) -> BackendOptions:
        """Return the options of one backend, defaults when it has no table."""
        return self.options.get(name) or BackendOptions()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A template of the user's that replaces the whole brief; empty for none (behaviour D7)."""

    template: str = key("", _FILE)


@dataclass(frozen=True, slots=True)
class Pulls:
    """How pull requests are watched (behaviour P3 to P8)."""

    use: str = key("gh", PLUG_IN)
    interval: timedelta = key(timedelta(seconds=30), rules.duration(_SECOND, _HOUR))
    ci_grace: timedelta = key(timedelta(minutes=30), _SECONDS)
    deadline: timedelta = key(timedelta(hours=24), _SECONDS)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a gap is tried, and how long is waited in between (behaviour X1)."""

    max_attempts: int = key(2, rules.whole(1, 100))
    base: timedelta = key(timedelta(seconds=10), _MOMENTS)
    cap: timedelta = key(timedelta(minutes=5), _MOMENTS)


@dataclass(frozen=True, slots=True)
class Brake:
    """Agents started for a gap without accepted progress before it is parked (behaviour X2)."""

    sessions: int = key(3, _TIMES)


@dataclass(frozen=True, slots=True)
class Routing:
    """The routing table's file, and task classes by beginning of id (behaviour G1, G2)."""

    table: str = key("docs/dispatch/routing.yaml", rules.place("a file"))
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


@dataclass(frozen=True, slots=True)
class Leases:
    """Where leases lie and how long they last (behaviour L1)."""

    dir: str = key(".chump-locks", rules.place("a folder"))
    ttl: timedelta = key(timedelta(hours=4), rules.duration(_MINUTE))


@dataclass(frozen=True, slots=True)
class Journal:
    """The databases that are shared with other tools (behaviour R1, R5)."""

    enabled: bool = key(default=True, rule=_SWITCH)
    reflections: str = key("sessions/chump_memory.db", rules.place("a file"))
    routing: str = key(".chump/state.db", rules.place("a file"))


@dataclass(frozen=True, slots=True)
class Lessons:
    """Whether lessons of past reflections are put into briefs (behaviour R7)."""

    enabled: bool = key(default=True, rule=_SWITCH)


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
    required: bool = key(default=False, rule=_SWITCH)


@dataclass(frozen=True, slots=True)
class Power:
    """Whether the machine is kept awake while agents run."""

    keep_awake: bool = key(default=True, rule=_SWITCH)


@dataclass(frozen=True, slots=True)
class Http:
    """Where health, metrics and state are told; empty for nowhere."""

    listen: str = key("", rules.listening())


@dataclass(frozen=True, slots=True)
class Faults:
    """Whether faults may be injected into real work (behaviour F1)."""

    allowed: bool = key(default=False, rule=_SWITCH)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set.

    Paths are as they were written: absolute, or relative to the repository; that of the brief's
    template is made absolute when settings are loaded. The last three come from the environment
    alone: `override` outranks the routing table (behaviour G3), `depth` is `CHUMP_DISPATCH_DEPTH`
    and `fault_inject` `CHUMP_FAULT_INJECT` as found, empty when unset.
    """

    max_parallel: int = key(2, _TIMES)
    max_open_pulls: int = key(10, _TIMES)
    base_ref: str = key("", _COMMIT)
    consent: bool = key(default=False, rule=_SWITCH)
    pass_env: tuple[str, ...] = key((), _PASSED)
    backlog: Backlog = field(default_factory=Backlog)
    pick: Pick = field(default_factory=Pick)
    deadlines: Deadlines = field(default_factory=Deadlines)
    backend: BackendSettings = field(default_factory=BackendSettings)
    prompt: Prompt = field(default_factory=Prompt)
    pulls: Pulls = field(default_factory=Pulls)
    retry: Retry = field(default_factory=Retry)
    brake: Brake = field(default_factory=Brake)
    routing: Routing = field(default_factory=Routing)
    worktrees: Worktrees = field(default_factory=Worktrees)
    leases: Leases = field(default_factory=Leases)
    journal: Journal = field(default_factory=Journal)
    lessons: Lessons = field(default_factory=Lessons)
    secrets: Secrets = field(default_factory=Secrets)
    state: State = field(default_factory=State)
    stop: Stop = field(default_factory=Stop)
    log: Log = field(default_factory=Log)
    limits: Limits = field(default_factory=Limits)
    power: Power = field(default_factory=Power)
    http: Http = field(default_factory=Http)
    faults: Faults = field(default_factory=Faults)
    override: Route | None = None
    depth: str = ""
    fault_inject: str = ""


def _rules_of(table: type) -> dict[str, Rule]:
    return {f.name: f.metadata["rule"] for f in fields(table) if "rule" in f.metadata}


_DEFAULTS = Settings()

TABLES: Mapping[str, type] = {
    f.name: type(getattr(_DEFAULTS, f.name))
    for f in fields(Settings)
    if is_dataclass(getattr(_DEFAULTS, f.name))
}
"""The tables of the file, by name."""

RULES: Mapping[Key, Rule] = {
    **{(name,): rule for name, rule in _rules_of(Settings).items()},
    **{(t, name): rule for t, table in TABLES.items() for name, rule in _rules_of(table).items()},
}
"""Every key with a fixed name; those of backends and task classes are found by `rule_of`."""

_OPTIONS = _rules_of(BackendOptions)


def options_of(backend: str) -> tuple[str, ...]:
    """Return the names of the options that mean something to a backend."""
    return tuple(name for name in _OPTIONS if name not in FOREIGN_OPTIONS.get(backend, ()))


def rule_of(where: Key) -> Rule | None:
    """Return what the key may hold; `None` when there is no such key."""
    match where:
        case ("backend", backend, option) if option in options_of(backend):
            return _OPTIONS[option]
        case ("routing", "classes", _):
            return CLASS
        case _:
            return RULES.get(where)


def build(
    values: Mapping[Key, object],
    override: Route | None = None,
    depth: str = "",
    fault_inject: str = "",
) -> Settings:
    """Make settings of checked values, and defaults for what is missing."""
    own: dict[str, Any] = {k[0]: value for k, value in values.items() if len(k) == 1}
    tables: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {name: {} for name in _no_options()}
    classes: dict[str, object] = {}
    for where, value in values.items():
        match where:
            case ("backend", backend, option):
                options.setdefault(backend, {})[option] = value
            case ("routing", "classes", start):
                classes[start] = value
            case (table, name):
                tables.setdefault(table, {})[name] = value
            case _:
                continue
    made = {name: BackendOptions(**given) for name, given in options.items()}
    tables.setdefault("backend", {})["options"] = MappingProxyType(made)
    tables.setdefault("routing", {})["classes"] = MappingProxyType(classes)
    own.update({table: TABLES[table](**given) for table, given in tables.items()})
    return Settings(**own, override=override, depth=depth, fault_inject=fault_inject)


def flatten(settings: Settings) -> dict[Key, object]:
    """Return every key and its value, in the order of the file."""
    found: dict[Key, object] = {(name,): getattr(settings, name) for name in _rules_of(Settings)}
    for table, kind in TABLES.items():
        values = getattr(settings, table)
        found.update({(table, name): getattr(values, name) for name in _rules_of(kind)})
        if table == "backend":
            for backend, given in settings.backend.options.items():
                for option in options_of(backend):
                    found["backend", backend, option] = getattr(given, option)
    found.update({("routing", "classes", s): c for s, c in settings.routing.classes.items()})
    return found
