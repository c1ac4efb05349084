"""The whole of the settings: its keys, found by name, made of values, and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.routing import Route
from chump_orchestrator.settings.rules import Key, Rule
from chump_orchestrator.settings.tables import (
    CLASS,
    CLAUDES_OPTIONS,
    COMMIT,
    FOREIGN_OPTIONS,
    PASSED,
    SWITCH,
    TIMES,
    BackendOptions,
    BackendSettings,
    Backlog,
    Brake,
    Budget,
    Commits,
    Deadlines,
    Faults,
    Http,
    Journal,
    Leases,
    Lessons,
    Limits,
    Log,
    Pick,
    Power,
    Prompt,
    Pulls,
    Retry,
    Routing,
    Secrets,
    Ship,
    State,
    Stop,
    Worktrees,
    key,
    no_options,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set.

    Paths are as they were written: absolute, or relative to the repository; that of the brief's
    template is made absolute when settings are loaded. The last three come from the environment
    alone: `override` outranks the routing table (behaviour G3), `depth` is `CHUMP_DISPATCH_DEPTH`
    and `fault_inject` `CHUMP_FAULT_INJECT` as found, empty when unset.
    """

    max_parallel: int = key(2, TIMES)
    max_open_pulls: int = key(10, TIMES)
    base_ref: str = key("", COMMIT)
    consent: bool = key(default=False, rule=SWITCH)
    pass_env: tuple[str, ...] = key((), PASSED)
    backlog: Backlog = field(default_factory=Backlog)
    pick: Pick = field(default_factory=Pick)
    deadlines: Deadlines = field(default_factory=Deadlines)
    backend: BackendSettings = field(default_factory=BackendSettings)
    commits: Commits = field(default_factory=Commits)
    prompt: Prompt = field(default_factory=Prompt)
    pulls: Pulls = field(default_factory=Pulls)
    ship: Ship = field(default_factory=Ship)
    retry: Retry = field(default_factory=Retry)
    brake: Brake = field(default_factory=Brake)
    budget: Budget = field(default_factory=Budget)
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
    return tuple(
        name for name in _OPTIONS if name not in FOREIGN_OPTIONS.get(backend, CLAUDES_OPTIONS)
    )


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
    options: dict[str, dict[str, Any]] = {name: {} for name in no_options()}
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
