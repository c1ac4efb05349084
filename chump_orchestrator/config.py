"""Settings from files, environment and flags; the only module that reads `os.environ`.

Flags outrank the environment, the environment the repository's file, that the user's file, and
that the defaults (behaviour C4). What is wrong is told all at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import plain
from chump_orchestrator.core.routing import Route, canonical_backend
from chump_orchestrator.settings import schema
from chump_orchestrator.settings.passed import AGENT_VARIABLES, FORGE_VARIABLES, agent_environment
from chump_orchestrator.settings.rules import Key, shown, toml
from chump_orchestrator.settings.schema import Settings, build, flatten, rule_of
from chump_orchestrator.settings.secrets import masked, masked_arguments, secret_values
from chump_orchestrator.settings.toml_file import Found, checked, dotted, read

__all__ = [
    "AGENT_VARIABLES",
    "FORGE_VARIABLES",
    "Loaded",
    "Origin",
    "OriginKind",
    "Settings",
    "agent_environment",
    "environment",
    "load",
    "secret_values",
    "show",
]

FILE = Path(".chump/orchestrator.toml")
"""The repository's settings file, relative to the repository."""

FLAGS: Mapping[Key, str] = {("backlog", "path"): "--backlog", ("consent",): "--yes"}
"""Flags whose names do not follow from their keys."""


class OriginKind(StrEnum):
    """Which layer a value comes from, the weakest first."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from: `name` is a file, a variable or a flag; `line` counts from 1."""

    kind: OriginKind = OriginKind.DEFAULT
    name: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.name}:{self.line}" if self.line else self.name
        return place or "default"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with the origin of every key, by dotted key, and what is odd but no error."""

    settings: Settings
    origins: Mapping[str, Origin]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Layers:
    """What was found so far; a later layer writes over an earlier one."""

    values: dict[Key, object] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)
    problems: list[tuple[Origin, Key, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def take(self, key: Key, value: object, origin: Origin) -> None:
        """Check a value from outside a file and keep it, or what is wrong with it."""
        try:
            self.values[key] = checked(key, value)
            self.origins[key] = origin
        except ValueError as error:
            self.problems.append((origin, key, str(error)))

    def take_file(self, path: Path, found: Found) -> None:
        """Keep what a file says."""
        for key, value in found.values.items():
            self.values[key] = value
            self.origins[key] = Origin(OriginKind.FILE, str(path), found.line_of(key))
        for problem in found.problems:
            origin = Origin(OriginKind.FILE, str(path), problem.line or None)
            self.problems.append((origin, problem.key, problem.text))

    def objection(self, key: Key, text: str) -> None:
        """Keep what is wrong with a value that is fine by itself."""
        self.problems.append((self.origins.get(key, Origin()), key, text))


def load(
    root: Path,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    user_file: Path | None = None,
    installed: Callable[[str], Collection[str]] | None = None,
) -> Loaded:
    """Return the settings that hold in the repository at `root`.

    `environ` is the environment to go by, this process's own when `None`. `flags` maps dotted
    keys to what was given on the command line, `None` meaning not given. `user_file` is the
    platform's when `None`. `installed` names the plug-ins of an entry-point group; where it knows
    none, names are not checked. Raises `ConfigError` with a line for everything that is wrong.
    """
    environ = environment() if environ is None else environ
    installed = installed or plug_ins
    layers = _Layers()
    for path in (user_file or user_settings_file(), root / FILE):
        layers.take_file(path, read(path))
    override = _from_environment(layers, environ)
    for name, value in (flags or {}).items():
        if value is not None:
            key = tuple(name.split("."))
            flag = FLAGS.get(key, "--" + name.replace(".", "-").replace("_", "-"))
            layers.take(key, _plain_value(value), Origin(OriginKind.FLAG, flag))
    settings = build(
        layers.values,
        override=override,
        depth=environ.get("CHUMP_DISPATCH_DEPTH", ""),
        fault_inject=environ.get("CHUMP_FAULT_INJECT", ""),
    )
    _check_names(layers, settings, installed)
    _check_together(layers, settings, root)
    if layers.problems:
        told = sorted(layers.problems, key=lambda p: (p[0].name, p[0].line or 0, p[1]))
        lines = "\n".join(dict.fromkeys(_told(*problem) for problem in told))
        raise ConfigError(masked(lines, secret_values(environ)))
    origins = {dotted(key): layers.origins.get(key, Origin()) for key in flatten(settings)}
    return Loaded(settings, origins, tuple(layers.notices))


def _told(origin: Origin, key: Key, text: str) -> str:
    return ": ".join(filter(None, (str(origin), dotted(key), text)))


def _plain_value(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def environment() -> dict[str, str]:
    """Return a copy of this process's environment, for those that need one handed in."""
    return dict(os.environ)


def user_settings_file() -> Path:
    """Return where the user's own settings are looked for, in the platform's folder for that."""
    import platformdirs  # noqa: PLC0415 - not needed by those who name the file

    return platformdirs.user_config_path("chump-orchestrator") / FILE.name


def plug_ins(group: str) -> Collection[str]:
    """Return the names that are registered for `backends`, `pulls` and so on."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - costs more than all the rest

    return sorted({point.name for point in entry_points(group=f"chump_orchestrator.{group}")})


def _integer(text: str) -> object:
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII) else text


def _fraction(text: str) -> object:
    return float(text) if re.fullmatch(r"[+-]?\d{0,18}\.?\d{1,18}", text, re.ASCII) else text


LEAST_HOURS, MOST_HOURS = 1 / 60, 24 * 3650
"""The limits of `leases.ttl`, as `GAP_CLAIM_TTL_HOURS` has them."""


def _hours(text: str) -> object:
    hours = _fraction(text)
    if not isinstance(hours, float) or not LEAST_HOURS <= hours <= MOST_HOURS:
        raise ValueError(f"{shown(text)} is no number of hours; write one such as 4 or 0.5")
    return timedelta(hours=hours)


VARIABLES: Mapping[str, tuple[Key, Callable[[str], object]]] = {
    "CHUMP_DISPATCH_CAPACITY": (("max_parallel",), _integer),
    "CHUMP_PICKER_BIAS_THRESHOLD": (("pick", "bias_threshold"), _fraction),
    "CHUMP_PICKER_BIAS_WINDOW": (("pick", "bias_window"), _integer),
    "CHUMP_CLAUDE_BIN": (("backend", "claude", "program"), str),
    "CHUMP_LOCAL_BIN": (("backend", "chump-local", "program"), str),
    "GAP_CLAIM_TTL_HOURS": (("leases", "ttl"), _hours),
    "CHUMP_LOCK_DIR": (("leases", "dir"), str),
}
"""Variables that stand for a key, and how their text is read. An empty one counts as unset."""

OVERRIDE = ("CHUMP_DISPATCH_BACKEND", "CHUMP_DISPATCH_MODEL", "CHUMP_DISPATCH_PROVIDER_PFX")
"""Variables that outrank the routing table (behaviour G3)."""


def _from_environment(layers: _Layers, environ: Mapping[str, str]) -> Route | None:
    """Take what the environment sets, and return the route it prescribes."""
    for variable, (key, read_text) in VARIABLES.items():
        text = environ.get(variable, "").strip()
        origin = Origin(OriginKind.ENVIRONMENT, variable)
        if text:
            try:
                layers.take(key, read_text(text), origin)
            except ValueError as error:
                layers.problems.append((origin, key, str(error)))
    if "cog_037" in environ.get("CHUMP_FLAGS", "").replace(",", " ").split():
        layers.notices.append(
            "CHUMP_FLAGS: cog_037 has no effect; this version does not learn routes"
        )
    backend, model, provider = (environ.get(name, "").strip() for name in OVERRIDE)
    rules = (schema.BACKEND, schema.MODEL, schema.PROVIDER)
    for variable, text, rule in zip(OVERRIDE, (backend, model, provider), rules, strict=True):
        if not text:
            continue
        try:
            rule.read(text)
        except ValueError as error:
            origin = Origin(OriginKind.ENVIRONMENT, variable)
            layers.problems.append((origin, (), f"{error}; write {rule.valid}"))
        if not backend:
            layers.notices.append(f"{variable} has no effect without CHUMP_DISPATCH_BACKEND")
    if not backend:
        return None
    return Route(canonical_backend(backend), model, provider, "CHUMP_DISPATCH_BACKEND")


def _check_names(
    layers: _Layers, settings: Settings, installed: Callable[[str], Collection[str]]
) -> None:
    """Object to backends and providers that are not installed (behaviour A1)."""
    backends, pulls = installed("backends"), installed("pulls")
    default = schema.BackendSettings().options
    named = {("backend", name): name for name in settings.backend.options if name not in default}
    named["backend", "use"] = settings.backend.use
    for key, name in named.items():
        if backends and name not in backends:
            where = next((k for k in layers.origins if k[:2] == key), key)
            text = f"no backend named {shown(name)}; installed: {', '.join(sorted(backends))}"
            layers.problems.append((layers.origins.get(where, Origin()), key, text))
    if settings.override and backends and settings.override.backend not in backends:
        text = f"no backend named {shown(settings.override.backend)}"
        origin = Origin(OriginKind.ENVIRONMENT, OVERRIDE[0])
        listed = ", ".join(sorted(backends))
        layers.problems.append((origin, (), f"{text}; installed: {listed}"))
    if pulls and settings.pulls.use not in pulls:
        text = (
            f"no provider named {shown(settings.pulls.use)}; installed: {', '.join(sorted(pulls))}"
        )
        layers.objection(("pulls", "use"), text)


def _check_together(layers: _Layers, settings: Settings, root: Path) -> None:
    """Object to values that are fine one by one, and take note of those that are odd."""
    custom = settings.backend.of("custom").argv
    if custom and (not custom[0] or custom[0].startswith("-")):
        layers.objection(("backend", "custom", "argv"), "it must begin with a program")
    needed = 'the custom backend needs a command; write [backend.custom] with argv = ["my-agent"]'
    if settings.backend.use == "custom" and not custom:
        layers.objection(("backend", "use"), needed)
    if settings.override and settings.override.backend == "custom" and not custom:
        layers.problems.append((Origin(OriginKind.ENVIRONMENT, OVERRIDE[0]), (), needed))
    retry = settings.retry
    if retry.base > retry.cap:
        text = f"{toml(retry.base)} is longer than retry.cap; write at most {toml(retry.cap)}"
        layers.objection(("retry", "base"), text)
    _check_folders(layers, settings, root)
    for effort, soft in settings.deadlines.soft.items():
        if settings.deadlines.grace >= soft:
            layers.notices.append(
                f"deadlines.grace is {toml(settings.deadlines.grace)}, as long as the whole"
                f" deadline of effort {effort}, {toml(soft)}"
            )
    for place in dict.fromkeys(p for a in custom for p in re.findall(r"\{[a-z_]+\}", a)):
        if place not in PLACEHOLDERS:
            known = " ".join(PLACEHOLDERS)
            layers.notices.append(f"backend.custom.argv: {place} stays as it is; known: {known}")
    if settings.fault_inject and not settings.faults.allowed:
        layers.notices.append(
            "CHUMP_FAULT_INJECT is set and counts in self-test only; faults.allowed is false"
        )


PLACEHOLDERS = ("{gap}", "{prompt_file}", "{worktree}", "{branch}", "{model}")
"""What is filled in where a custom backend's `argv` has it."""


def _check_folders(layers: _Layers, settings: Settings, root: Path) -> None:
    """Object to folders of which one would sweep up the other."""

    def place(folder: str) -> Path:
        return Path(os.path.normpath(root.absolute() / folder))

    base, leases, state = (
        place(folder)
        for folder in (settings.worktrees.base, settings.leases.dir, settings.state.dir)
    )
    own = ("worktrees", "base")
    for other, key in ((leases, ("leases", "dir")), (state, ("state", "dir"))):
        if base.is_relative_to(other) or other.is_relative_to(base):
            guilty, free_of = (own, key) if own in layers.origins else (key, own)
            layers.objection(guilty, f"it shares a folder with {dotted(free_of)}; keep them apart")
    if leases == state:
        guilty = ("state", "dir") if ("state", "dir") in layers.origins else ("leases", "dir")
        layers.objection(guilty, "leases.dir and state.dir are one folder; keep them apart")


def show(loaded: Loaded, secrets: Iterable[str] = ()) -> list[tuple[str, str, str]]:
    """Return rows of key, value and origin for people to read, in the order of the file.

    What looks like a secret is masked, and so is every one of `secrets`.
    """
    hidden = tuple(secrets)
    rows = [
        (dotted(key), _value_text(key, value, hidden), str(loaded.origins[dotted(key)]))
        for key, value in flatten(loaded.settings).items()
    ]
    return rows + [
        (name, masked(plain(text), hidden), variable)
        for name, text, variable in _from_environment_alone(loaded.settings)
    ]


def _from_environment_alone(settings: Settings) -> Iterator[tuple[str, str, str]]:
    if (route := settings.override) is not None:
        told = (route.backend, route.model, route.provider_pfx)
        yield "override", " ".join(filter(None, told)), OVERRIDE[0]
    if settings.depth:
        yield "depth", settings.depth, "CHUMP_DISPATCH_DEPTH"
    if settings.fault_inject:
        yield "fault_inject", settings.fault_inject, "CHUMP_FAULT_INJECT"


def _value_text(key: Key, value: object, secrets: tuple[str, ...]) -> str:
    rule = rule_of(key)
    if isinstance(value, tuple):
        value = tuple(masked_arguments(value))
    return masked(rule.text(value) if rule else toml(value), secrets)
