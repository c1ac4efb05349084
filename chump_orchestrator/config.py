"""Settings from files, environment and flags; the only module that reads `os.environ`.

Flags outrank the environment, the environment the repository's file, that the user's file, and
that the defaults (behaviour C4). What is wrong is told all at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.routing import Route, canonical_backend
from chump_orchestrator.settings import tables
from chump_orchestrator.settings.display import OVERRIDE, show, show_secrets
from chump_orchestrator.settings.layers import Layers, Loaded, Origin, OriginKind, Secret
from chump_orchestrator.settings.passed import (
    AGENT_VARIABLES,
    FORGE_VARIABLES,
    agent_environment,
    environment_without_forge,
    passes_forge,
)
from chump_orchestrator.settings.rules import Key, shown, toml
from chump_orchestrator.settings.schema import Settings, build, flatten
from chump_orchestrator.settings.secret_sources import DEFAULT_FILE, gather, values_of
from chump_orchestrator.settings.secrets import masked, secret_values
from chump_orchestrator.settings.shipping import oddities
from chump_orchestrator.settings.toml_file import dotted, read

__all__ = [
    "AGENT_VARIABLES",
    "FORGE_VARIABLES",
    "Loaded",
    "Origin",
    "OriginKind",
    "Settings",
    "agent_environment",
    "environment",
    "environment_without_forge",
    "hidden",
    "load",
    "passes_forge",
    "salvage",
    "secret_values",
    "show",
    "show_secrets",
]

FILE = Path(".chump/orchestrator.toml")
"""The repository's settings file, relative to the repository."""

FLAGS: Mapping[Key, str] = {
    ("backlog", "path"): "--backlog",
    ("backlog", "ref"): "--backlog",
    ("consent",): "--yes",
}
"""Flags whose names do not follow from their keys."""


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
    loaded, wrong = salvage(
        root, environ=environ, flags=flags, user_file=user_file, installed=installed
    )
    if wrong:
        raise ConfigError(wrong)
    return loaded


def salvage(
    root: Path,
    *,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    user_file: Path | None = None,
    installed: Callable[[str], Collection[str]] | None = None,
) -> tuple[Loaded, str]:
    """Return what can be used of the settings, and all that is wrong, a line each; "" for nothing.

    The parameters are those of `load`. What is wrong counts as not given. It does for finding a
    daemon that runs; nothing else should be done with settings of which something is wrong.
    """
    environ = environment() if environ is None else environ
    installed = installed or plug_ins
    layers = Layers()
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
    settings = _with_template(layers, settings, root)
    secrets = _secrets(layers, settings, root, environ)
    told = sorted(layers.problems, key=lambda p: (p[0].name, p[0].line or 0, p[1]))
    lines = "\n".join(dict.fromkeys(_told(*problem) for problem in told))
    origins = {dotted(key): layers.origins.get(key, Origin()) for key in flatten(settings)}
    loaded = Loaded(settings, origins, tuple(layers.notices), secrets)
    return loaded, masked(lines, secret_values(environ, loaded.hidden))


def _told(origin: Origin, key: Key, text: str) -> str:
    return ": ".join(filter(None, (str(origin), dotted(key), text)))


def _plain_value(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def environment(loaded: Loaded | None = None) -> dict[str, str]:
    """Return a copy of this process's environment, for those that need one handed in.

    The secrets of `loaded` are laid over it, as if they had been set there.
    """
    return {**os.environ, **({} if loaded is None else values_of(loaded.secrets))}


def hidden(loaded: Loaded | None = None) -> tuple[str, ...]:
    """Return all values that must not be shown: those of the environment, and of `loaded`."""
    return secret_values(os.environ, () if loaded is None else loaded.hidden)


def user_settings_file() -> Path:
    """Return where the user's own settings are looked for, in the platform's folder for that."""
    if sys.platform == "linux":
        # What the import below makes of it, and is half as long about as all the rest.
        for variable, below in (("XDG_CONFIG_HOME", ""), ("HOME", ".config")):
            if (folder := os.environ.get(variable, "")).startswith("/"):
                return Path(folder, below, "chump-orchestrator", FILE.name)
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


def _milliseconds(text: str) -> object:
    return f"{text}ms"


VARIABLES: Mapping[str, tuple[Key, Callable[[str], object]]] = {
    "CHUMP_DISPATCH_CAPACITY": (("max_parallel",), _integer),
    "CHUMP_PICKER_BIAS_THRESHOLD": (("pick", "bias_threshold"), _fraction),
    "CHUMP_PICKER_BIAS_WINDOW": (("pick", "bias_window"), _integer),
    "CHUMP_CLAUDE_BIN": (("backend", "claude", "program"), str),
    "CHUMP_LOCAL_BIN": (("backend", "chump-local", "program"), str),
    "CLAUDE_CODE_MAX_RETRIES": (("backend", "claude", "max_retries"), _integer),
    "API_TIMEOUT_MS": (("backend", "claude", "api_timeout"), _milliseconds),
    "GAP_CLAIM_TTL_HOURS": (("leases", "ttl"), _hours),
    "CHUMP_LOCK_DIR": (("leases", "dir"), str),
    "CHUMP_LOG_FILE": (("log", "file"), str),
}
"""Variables that stand for a key, and how their text is read. An empty one counts as unset."""


def _from_environment(layers: Layers, environ: Mapping[str, str]) -> Route | None:
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
        layers.take(
            ("routing", "learn"), value=True, origin=Origin(OriginKind.ENVIRONMENT, "CHUMP_FLAGS")
        )
    backend, model, provider = (environ.get(name, "").strip() for name in OVERRIDE)
    rules = (tables.BACKEND, tables.MODEL, tables.PROVIDER)
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


BUILT_IN = {
    "backends": (
        "claude",
        "chump-local",
        "custom",
        "codex",
        "gemini",
        "opencode",
        "goose",
        "qwen",
        "aider",
    ),
    "pulls": ("gh", "git"),
    "shippers": ("gh", "git"),
}
"""Plug-ins that are there wherever this is; to look for others takes as long as all the rest."""


def _check_names(
    layers: Layers, settings: Settings, installed: Callable[[str], Collection[str]]
) -> None:
    """Object to backends and providers that are not installed (behaviour A1)."""

    def objection(group: str, noun: str, name: str) -> str:
        if name in BUILT_IN[group] or name in (known := installed(group)) or not known:
            return ""
        return f"no {noun} named {shown(name)}; installed: {', '.join(sorted(known))}"

    default = tables.BackendSettings().options
    own = (name for name in settings.backend.options if name not in default)
    named: dict[Key, str] = {("backend", name): name for name in own}
    named["backend", "use"] = settings.backend.use
    named.update({key: key[1] for key in layers.tables if key[1] not in default})
    for key, name in named.items():
        if text := objection("backends", "backend", name):
            where = next((k for k in layers.origins if k[:2] == key), key)
            origin = layers.origins.get(where) or layers.tables.get(key) or Origin()
            layers.problems.append((origin, key, text))
    if settings.override and (text := objection("backends", "backend", settings.override.backend)):
        layers.problems.append((Origin(OriginKind.ENVIRONMENT, OVERRIDE[0]), (), text))
    if text := objection("pulls", "provider", settings.pulls.use):
        layers.objection(("pulls", "use"), text)
    elif str(settings.ship.by) == "daemon" and (
        text := objection("shippers", "shipper", settings.pulls.use)
    ):
        layers.objection(("ship", "by"), text)


def _check_together(layers: Layers, settings: Settings, root: Path) -> None:
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
    if settings.routing.learn and not settings.journal.enabled:
        layers.notices.append(
            "routing.learn has nothing to learn from; write journal.enabled = true"
        )
    layers.notices.extend(oddities(settings))
    if settings.fault_inject and not settings.faults.allowed:
        layers.notices.append(
            "CHUMP_FAULT_INJECT is set and counts in self-test only; faults.allowed is false"
        )


def _with_template(layers: Layers, settings: Settings, root: Path) -> Settings:
    """Return the settings with the whole path of a brief's template, and tell what is odd there.

    A relative one lies in the repository's main work tree, as what the operator wrote does; one
    of that name in an agent's worktree is not it.
    """
    written = settings.prompt.template
    if not written:
        return settings
    path = root.absolute() / written
    if not Path(written).is_absolute() and not path.resolve().is_relative_to(root.resolve()):
        # Otherwise whoever can commit a link could have any file of this machine told to an agent.
        layers.objection(("prompt", "template"), f"{path} leads out of the repository")
    elif not path.is_file():
        layers.notices.append(f"prompt.template: there is no file {path}")
    return replace(settings, prompt=replace(settings.prompt, template=str(path)))


def _secrets(
    layers: Layers, settings: Settings, root: Path, environ: Mapping[str, str]
) -> Mapping[str, Secret]:
    """Return the secrets of credentials and file, and tell what is wrong with them."""
    key, written = ("secrets", "file"), settings.secrets.file
    path = root.absolute() / written if written else None
    is_inside = path is None or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    if not is_inside and not Path(written).is_absolute():
        # As for the template: what is committed must not lead to other files of this machine.
        layers.objection(key, f"{path} leads out of the repository; write its whole path")
        path = None
    gathered = gather(
        environ.get("CREDENTIALS_DIRECTORY", ""),
        path,
        is_wanted=written != DEFAULT_FILE,
        settings={*VARIABLES, *OVERRIDE, "CHUMP_FLAGS"},
    )
    layers.problems.extend((origin, (), text) for origin, text in gathered.problems)
    layers.notices.extend(gathered.notices)
    return gathered.secrets


PLACEHOLDERS = ("{gap}", "{prompt_file}", "{worktree}", "{branch}", "{model}")
"""What is filled in where a custom backend's `argv` has it."""


def _check_folders(layers: Layers, settings: Settings, root: Path) -> None:
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
