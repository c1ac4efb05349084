"""What an operator may say of a backend, and what becomes of it in every command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.routing import Route

LEAD = "Your brief:\n\n"
"""Stands before a brief that would otherwise be taken for a command of the agent's own."""

_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """What the operator says of one backend; empty, 0 and `None` leave it to the backend.

    `program` takes the place of the usual candidates. `argv` is for `custom` alone; the last five
    are for `claude`. `env` is set for the agent as it stands, `pass_env` names what else may come
    from the daemon's.
    """

    program: str = ""
    model: str = ""
    extra_args: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    stop_signals: tuple[str, ...] = ("INT", "TERM")
    env: Mapping[str, str] = field(default_factory=dict)
    fallback_model: str = ""
    max_turns: int = 0
    max_budget_usd: float = 0.0
    max_retries: int | None = None
    api_timeout: timedelta | None = None

    def programs(self, *usual: str) -> tuple[str, ...]:
        """Return the candidates for the program, `usual` unless the operator named one."""
        return (self.program,) if self.program else usual

    def model_for(self, route: Route) -> str:
        """Return the model, or empty; `ConfigError` for one that would be an option."""
        model = route.model or self.model
        if model.startswith("-"):
            raise ConfigError(f"model {model[:80]!r}: a name that begins with - would be an option")
        return model


def lead_for(brief: str) -> str:
    """Return what to put before a brief that agents would take for one of their commands."""
    return LEAD if brief.lstrip().startswith("/") else ""


def option(name: str, value: object) -> tuple[str, ...]:
    """Return an option and its value, or nothing for a value that is empty or 0."""
    return (name, f"{value:g}" if isinstance(value, float) else str(value)) if value else ()


def provider(prefix: str, base: str, key: str) -> Mapping[str, str]:
    """Say from which variables a provider's address and key come (behaviour A2).

    `base` and `key` are the variables in which the agent looks for them.
    """
    if not prefix:
        return {}
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"provider_pfx {prefix[:80]!r}: expected the beginning of a variable's name, such as"
            " TOGETHER for TOGETHER_API_BASE and TOGETHER_API_KEY"
        )
    return {base: f"{prefix}_API_BASE", key: f"{prefix}_API_KEY"}


def without_provider(route: Route) -> None:
    """Refuse a provider for a backend that cannot be given one, rather than ignore it."""
    if route.provider_pfx:
        raise ConfigError(
            f"backend {route.backend} cannot be given a provider (provider_pfx"
            f" {route.provider_pfx[:80]!r}); set one up in the agent's own configuration"
        )
