"""How events reach a terminal, a service's journal or a file; secrets are cut out on the way."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, MutableMapping
from typing import TextIO

import structlog

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

SHORTEST_SECRET = 8
"""Shorter values would cut holes into ordinary words."""

REDACTED = "[redacted]"


def configure(
    *,
    format: str = "auto",  # noqa: A002 - the name of the setting
    level: str = "info",
    secrets: Collection[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send events of `level` and above to `stream`, standard error by default.

    `auto` is for people on a terminal and one line of JSON an event elsewhere; `journal` is for
    a service's journal, which has times of its own. Values of `secrets` never get through.
    """
    out = stream or sys.stderr
    is_console = format == "console" or (format == "auto" and out.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        Redaction(secrets),
        structlog.processors.format_exc_info,
    ]
    if format != "journal":
        stamp = "%H:%M:%S" if is_console else "iso"
        processors.append(structlog.processors.TimeStamper(fmt=stamp, utc=not is_console))
    if is_console:
        processors.append(structlog.dev.ConsoleRenderer(colors=out.isatty()))
    else:
        processors.append(structlog.processors.JSONRenderer(default=str))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS.get(level, logging.ERROR)),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )


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

    def _cleaned(self, value: object) -> object:
        match value:
            case str():
                for secret in self._secrets:
                    value = value.replace(secret, REDACTED)
                return value
            case list() | tuple():
                return [self._cleaned(item) for item in value]
            case Mapping():
                return {key: self._cleaned(item) for key, item in value.items()}
            case _:
                return value
