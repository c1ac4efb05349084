"""Where values come from, and how what is found in one place is laid over the others (C4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from pathlib import Path

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.settings.rules import Key
from chump_orchestrator.settings.schema import Settings
from chump_orchestrator.settings.toml_file import Found, checked


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
class Secret:
    """A value that is never shown, and where it comes from."""

    value: str = field(repr=False)
    origin: Origin


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with the origin of every key, by dotted key, and what is odd but no error.

    `secrets` are variables from elsewhere than the environment, which they outrank, by name.
    """

    settings: Settings
    origins: Mapping[str, Origin]
    notices: tuple[str, ...] = ()
    secrets: Mapping[str, Secret] = field(default_factory=dict)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The values of all secrets, which must not be shown whatever they are called."""
        return tuple(secret.value for secret in self.secrets.values())


@dataclass(frozen=True, slots=True)
class Layers:
    """What was found so far; a later layer writes over an earlier one.

    `tables` are those of backends, as one without a key has no other trace.
    """

    values: dict[Key, object] = field(default_factory=dict)
    origins: dict[Key, Origin] = field(default_factory=dict)
    tables: dict[Key, Origin] = field(default_factory=dict)
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
        for key in found.backends:
            self.tables[key] = Origin(OriginKind.FILE, str(path), found.line_of(key))
        for problem in found.problems:
            origin = Origin(OriginKind.FILE, str(path), problem.line or None)
            self.problems.append((origin, problem.key, problem.text))

    def objection(self, key: Key, text: str) -> None:
        """Keep what is wrong with a value that is fine by itself."""
        self.problems.append((self.origins.get(key, Origin()), key, text))
