"""Finds implementations of ports by their entry points, the built-in ones as anybody's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.routing import canonical_backend

PREFIX = "chump_orchestrator."
"""Groups of entry points are named after the slot: `chump_orchestrator.backends`."""

_NOUNS = {
    "backends": "backend",
    "backlogs": "kind of backlog",
    "executors": "executor",
    "journals": "journal",
    "prompts": "maker of briefs",
    "pulls": "provider of pull requests",
    "shippers": "shipper",
}


def installed(group: str) -> Mapping[str, EntryPoint]:
    """Return what is installed for a slot, such as `backends`, by name.

    Of several with one name the first one found counts, as with modules.
    """
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=PREFIX + group):
        found.setdefault(point.name, point)
    return found


def find(group: str, name: str) -> Callable[..., Any]:
    """Return what makes the implementation called `name`.

    Raises `ConfigError` when none is installed under the name, with those that are, or when its
    code cannot be loaded.
    """
    noun = _NOUNS.get(group, "plug-in")
    known = installed(group)
    point = known.get(canonical_backend(name) if group == "backends" else name)
    if point is None:
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"no {noun} named {name!r}; installed: {names}")
    try:
        made: Callable[..., Any] = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{noun} {name!r}: {point.value} cannot be loaded: {error}; install it anew"
        ) from error
    return made


def make(group: str, name: str, ingredients: Mapping[str, object]) -> Any:  # noqa: ANN401
    """Make the implementation called `name`; the caller knows its protocol by the group.

    Of `ingredients` it gets those that it names as parameters, so that a plug-in need not take
    what it has no use for. `ConfigError` when it needs one that this version does not have.
    """
    maker = find(group, name)
    wanted = inspect.signature(maker).parameters.values()
    taken = {p.name: ingredients[p.name] for p in wanted if p.name in ingredients}
    lacking = [
        p.name
        for p in wanted
        if p.default is p.empty
        and p.name not in taken
        and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    if lacking:
        raise ConfigError(
            f"{_NOUNS.get(group, 'plug-in')} {name!r} asks for {', '.join(lacking)}, which is not"
            f" to be had here; there is {', '.join(sorted(ingredients))}"
        )
    return maker(**taken)
