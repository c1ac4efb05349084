"""How answers look: tables for people, JSON for programs, nothing that moves a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from chump_orchestrator.core.gap import on_one_line, plain

if TYPE_CHECKING:
    from rich.text import Text

SCHEMA_VERSION = 1
"""In every JSON document; raised when a key is renamed or changes its meaning."""

FREE_TEXT = 24
"""Columns of a terminal that a table's last column needs beside the others; with fewer it goes
below them."""

INDENT = "    "


def emit(document: Mapping[str, object]) -> None:
    """Print a document as JSON, with the version of its schema first, in ASCII."""
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


def note(text: str) -> None:
    """Say something beside the data; it is lost where standard error takes nothing."""
    with contextlib.suppress(OSError):
        for line in text.splitlines():
            click.echo(plain(line), err=True)


def say(text: str) -> None:
    """Print a line of data, whoever wrote parts of it."""
    click.echo(on_one_line(text))


def say_meanwhile(text: str) -> None:
    """Print a line about work that goes on, also when nobody reads it any more."""
    with contextlib.suppress(OSError):
        click.echo(plain(text))


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
    """Fit a table to the terminal: what is folded is its last column, the free text.

    Where that has no room beside the others it goes below them, and on a terminal that is too
    narrow even for these, every cell has a line of its own.
    """
    from rich.cells import cell_len, set_cell_size  # noqa: PLC0415 - slow to import, seldom needed
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(highlight=False)
    columns = list(zip(headers, *cells, strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = console.width - before

    def beside(row: Sequence[str], style: str = "") -> Text:
        """Return all but the last cell on one line."""
        padded = (set_cell_size(one, width) + "  " for one, width in zip(row, widths, strict=False))
        return Text("".join(list(padded)[:-1]), style)

    def folded(text: str, width: int) -> list[Text]:
        return list(Text(text).wrap(console, max(width, 1))) or [Text()]

    lines: list[Text] = []
    if before > console.width:
        for row in cells:
            for header, cell in zip(headers, row, strict=True):
                lines.append(Text.assemble((f"{header}: ", "bold"), cell))
            lines.append(Text())
    elif room >= min(widths[-1], FREE_TEXT):
        lines.append(beside(headers, "bold").append(headers[-1], "bold"))
        for row in cells:
            first, *rest = folded(row[-1], room)
            lines.append(beside(row).append_text(first))
            lines += [Text(" " * before).append_text(line) for line in rest]
    else:
        lines += [beside(headers, "bold"), Text(INDENT + headers[-1], "bold")]
        for row in cells:
            lines.append(beside(row))
            below = folded(row[-1], console.width - len(INDENT)) if row[-1] else []
            lines += [Text(INDENT).append_text(line) for line in below]
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True)


def dollars(amount: object) -> str:
    """Return an amount for people; `-` when it is not known."""
    return f"${amount:.2f}" if isinstance(amount, int | float) else "-"


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
