"""What must not stand in a log: secret values, and characters that deceive whoever reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

from chump_orchestrator.core.gap import on_one_line, plain

SHORTEST_SECRET = 8
"""Shorter values would cut holes into ordinary words."""

REDACTED = "[redacted]"

OF_SEVERAL_LINES = ("exception", "stack")
"""Fields whose line breaks are their nature."""


def harmless(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Take out of an event's texts what would move, colour or forge lines of a terminal.

    A processor. Of what has several lines by nature, a traceback, the line breaks stay.
    """
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = plain(value) if key in OF_SEVERAL_LINES else on_one_line(value)
    return event


class Redaction:
    """A processor that replaces secret values wherever they stand in an event."""

    def __init__(self, secrets: Collection[str]) -> None:
        self._secrets = sorted(
            {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}, key=len, reverse=True
        )

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, object]
    ) -> Mapping[str, object]:
        if self._secrets:
            for key, value in event.items():
                event[key] = self._cleaned(value)
        return event

    def text(self, text: str) -> str:
        """Return a text without the secrets."""
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text

    def _cleaned(self, value: object) -> object:
        match value:
            case str():
                return self.text(value)
            case list() | tuple() | set() | frozenset():
                return [self._cleaned(item) for item in value]
            case Mapping():
                return {self._cleaned(key): self._cleaned(item) for key, item in value.items()}
            case None | bool() | int() | float():
                return value
            case _:
                # Whatever else it is, it is rendered as its text.
                text = str(value)
                cleaned = self._cleaned(text)
                return value if cleaned == text else cleaned
