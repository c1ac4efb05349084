"""How events reach a terminal, a service's journal or a file; secrets are cut out on the way."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, TextIO, cast

import structlog

from chump_orchestrator.core.gap import on_one_line, plain

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""Levels by name; `critical`, which no event has, is for those who want to hear nothing."""

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
    a service's journal, which has times of its own. Values of `secrets` never get through. What
    the stream does not take is lost: no event ever harms the one that tells it.
    """
    out = Expendable(stream or sys.stderr)
    is_console = format == "console" or (format == "auto" and out.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        Redaction(secrets),
    ]
    if format != "journal":
        stamp = "%H:%M:%S" if is_console else "iso"
        processors.append(structlog.processors.TimeStamper(fmt=stamp, utc=not is_console))
    if is_console:
        renderer = structlog.dev.ConsoleRenderer(
            colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        processors += [harmless, renderer]
    else:
        processors.append(structlog.processors.JSONRenderer(default=str))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", out)),
        cache_logger_on_first_use=False,
    )


class Expendable:
    """A stream that drops what it cannot write: its reader is gone, its disk full, it is closed.

    A stream of `None` takes nothing at all.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, or drop it."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Let what was written go on its way, or drop it."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Say whether a person may be reading along."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False


def harmless(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Take out of an event's texts what would move, colour or forge lines of a terminal.

    A processor. Of what has several lines by nature, a traceback, the line breaks stay.
    """
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = plain(value) if key in ("exception", "stack") else on_one_line(value)
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
