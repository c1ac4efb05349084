"""How answers look: tables for people, JSON for programs, nothing that moves a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import click

from chump_orchestrator.core.gap import on_one_line, plain

SCHEMA_VERSION = 1
"""In every JSON document; raised when a key is renamed or changes its meaning."""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


def emit(document: Mapping[str, object]) -> None:
    """Print a document as JSON, with the version of its schema first, in ASCII."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


def note(text: str) -> None:
    """Say something beside the data."""
    for line in text.splitlines():
        click.echo(plain(line), err=True)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their headers; in colour and folded to its width on a terminal only."""
    cells = [[on_one_line(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(headers, cells)
        return
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    for row in (list(headers), *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _rich_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for at, header in enumerate(headers):
        shown.add_column(header, overflow="fold", no_wrap=at == 0)
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    Console().print(shown)


def duration(seconds: float | None) -> str:
    """Return seconds as people say them, `1h 05m`, `3m 20s`, `12s`; `-` when not known."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if whole < 60:  # noqa: PLR2004 - seconds in a minute
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004 - minutes in an hour
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def instant(at: datetime) -> str:
    """Return an instant in UTC, `2026-04-27T12:00:00Z`."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def harmless(text: str) -> str:
    """Return an agent's output without what would move, colour or rename a terminal."""
    return plain(_ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
