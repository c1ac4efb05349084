"""From an event that was told to the places that it goes to, each in its own form."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any, TextIO

import structlog

from chump_orchestrator.logs.journald import SOCKET, Journal
from chump_orchestrator.logs.redaction import Redaction, harmless
from chump_orchestrator.logs.streams import Expendable, RotatingFile, Stream

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
"""Levels by name; `critical`, which no event has, is for those who want to hear nothing."""

Outlet = Callable[[Mapping[str, Any]], None]
"""Takes a finished event, which it does not change."""

_closing: list[Callable[[], None]] = []
"""What the log has open since it was set up last."""


def configure(
    *,
    format: str = "auto",  # noqa: A002 - the name of the setting
    level: str = "info",
    secrets: Collection[str] = (),
    stream: TextIO | None = None,
    journal_stream: str = "",
    journal: str = SOCKET,
    file: RotatingFile | None = None,
    shown: str = "",
) -> None:
    """Send events of `level` and above to `stream`, standard error by default, or where it leads.

    `auto` is for people on a terminal, for systemd's journal where `journal_stream`, the variable
    of that name, says that the stream leads there, and elsewhere one line of JSON an event. A
    `file` gets events in the place of a stream that is neither of the two. `shown` is the level
    for the stream where that differs; `journal` is the journal's own socket. Values of `secrets`
    never get through.
    """
    out = Expendable(stream or sys.stderr)
    if format == "auto" and not out.isatty() and out.is_of(journal_stream):
        format = "journal"  # noqa: A001 - the setting is decided
    release()
    outlets: dict[Outlet, str] = {}
    if format == "journal":
        native = Journal(out, journal)
        _closing.append(native.close)
        outlets[native] = shown or level
    elif out.isatty() or file is None:
        is_console = format == "console" or (format == "auto" and out.isatty())
        outlets[_lines(out, is_console=is_console, has_colours=out.isatty())] = shown or level
    if file is not None:
        _closing.append(file.close)
        outlets[_lines(file, is_console=format == "console", is_dated=True)] = level
    destination = _Destination(outlets)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            Redaction(secrets),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            min(LEVELS[wanted] for wanted in outlets.values())
        ),
        logger_factory=lambda *_: destination,
        cache_logger_on_first_use=False,
    )


def release() -> None:
    """Close what the log has open; it may be set up anew after that."""
    while _closing:
        _closing.pop()()


class _Destination:
    """What structlog takes for its logger: hands each event to every outlet for its level."""

    def __init__(self, outlets: Mapping[Outlet, str]) -> None:
        self._outlets = {outlet: LEVELS[level] for outlet, level in outlets.items()}
        self._turn = threading.RLock()

    def _take(self, /, **event: Any) -> None:  # noqa: ANN401 - fields of any type
        level = LEVELS[event["level"]]
        with self._turn:
            for outlet, least in self._outlets.items():
                if level >= least:
                    outlet(event)

    debug = info = warning = error = critical = exception = _take


def _lines(
    out: Stream, *, is_console: bool, has_colours: bool = False, is_dated: bool = False
) -> Outlet:
    """Return an outlet that writes a line an event: for people, or as JSON."""
    render: structlog.typing.Processor = structlog.processors.JSONRenderer(default=str)
    if is_console:
        render = structlog.dev.ConsoleRenderer(
            colors=has_colours, exception_formatter=structlog.dev.plain_traceback
        )
    is_local = is_console and not is_dated
    stamp = structlog.processors.TimeStamper("%H:%M:%S" if is_local else "iso", utc=not is_local)

    def write(event: Mapping[str, Any]) -> None:
        stamped = stamp(None, "", dict(event))
        if is_console:
            stamped = harmless(None, "", stamped)
        out.write(f"{render(None, '', stamped)!s}\n")
        out.flush()

    return write
