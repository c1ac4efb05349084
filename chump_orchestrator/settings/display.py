"""The settings as they are shown: every value with where it comes from, and no secret."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from chump_orchestrator.core.gap import plain
from chump_orchestrator.settings.layers import Loaded
from chump_orchestrator.settings.rules import Key, toml
from chump_orchestrator.settings.schema import Settings, flatten, rule_of
from chump_orchestrator.settings.secrets import is_secret, masked, masked_arguments
from chump_orchestrator.settings.toml_file import dotted

OVERRIDE = ("CHUMP_DISPATCH_BACKEND", "CHUMP_DISPATCH_MODEL", "CHUMP_DISPATCH_PROVIDER_PFX")
"""Variables that outrank the routing table (behaviour G3)."""


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


def show_secrets(loaded: Loaded, environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the name of every secret that is there, and where it comes from; never a value."""
    found = {name: str(secret.origin) for name, secret in loaded.secrets.items()}
    for name, value in environ.items():
        if value and is_secret(name):
            found.setdefault(name, "environment")
    return sorted(found.items())


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
