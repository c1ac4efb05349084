"""The one table of all measurements: on the terminal, as JSON, and in a documentation page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.measuring import Row, Target

BEGIN = "<!-- measured: written by `python -m tests.benchmarks --write`, not by hand -->"
END = "<!-- measured: end -->"


class NoFigures(Exception):
    """There is nothing that could be written into the page."""


def show(rows: Sequence[Row], console: Console) -> None:
    """Print the table for people."""
    table = Table(box=None, pad_edge=False)
    table.add_column("row", overflow="fold")
    table.add_column("what", overflow="fold")
    for name in ("median", "spread", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("target", overflow="fold")
    table.add_column("met", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.what, *_cells(row), style=_style(row))
    console.print(table)


def _style(row: Row) -> str:
    if row.is_met is None:
        return "dim"
    return "" if row.is_met else "bold red"


def _cells(row: Row) -> tuple[str, ...]:
    low, high = row.spread
    return (
        f"{number(row.median)} {row.unit}".rstrip(),
        f"{number(low)} to {number(high)}",
        ratio_of(row),
        target_of(row),
        met(row),
    )


def number(value: float) -> str:
    """Return three figures of it, or all that stand before the point."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio_of(row: Row) -> str:
    """Return the ratio and what it is to, `-` where there is none."""
    if row.ratio is None:
        return "-"
    return f"{number(row.ratio)} x {row.against}".rstrip()


def target_of(row: Row) -> str:
    """Return the target in words, `-` where there is none."""
    target = row.target
    if target is None:
        return "-"
    if target.words:
        return target.words
    sign = "≥" if target.at_least else "≤"
    unit = f"x {row.against}" if target.of == "ratio" else row.unit
    return f"{sign} {number(target.limit)} {unit}".rstrip()


def met(row: Row) -> str:
    """Return whether the target is met, and by how much it is missed."""
    if row.is_met is None:
        return "-"
    return "yes" if row.is_met else f"no, {number(row.missed_by or 0.0)} x"


def document(
    rows: Sequence[Row],
    machine: Mapping[str, Any],
    *,
    quick: bool,
    notes: Mapping[str, str],
    took_s: Mapping[str, float],
) -> dict[str, Any]:
    """Return everything in the shape of the JSON file."""
    return {
        "v": 1,
        "quick": quick,
        "machine": dict(machine),
        "notes": dict(notes),
        "took_s": {name: round(value, 1) for name, value in took_s.items()},
        "rows": [
            {
                **asdict(row),
                "median": row.median,
                "spread": row.spread,
                "ratio": row.ratio,
                "met": row.is_met,
            }
            for row in rows
        ],
    }


def rows_in(told: Mapping[str, Any]) -> list[Row]:
    """Return the rows of such a document."""
    return [
        Row(
            name=one["name"],
            what=one["what"],
            unit=one["unit"],
            values=tuple(one["values"]),
            target=Target(**one["target"]) if one["target"] else None,
            against=one["against"],
            others=tuple(one["others"]),
            note=one["note"],
        )
        for one in told["rows"]
    ]


def write_into(page: Path, source: Path) -> None:
    """Put the figures of a JSON file between the two marks of a page.

    `NoFigures` when there is no such file, when it is of a quick measurement, or when the page has
    no marks.
    """
    try:
        told = json.loads(source.read_text("utf-8"))
    except FileNotFoundError:
        raise NoFigures(f"there is no {source}: measure first, with `make bench`") from None
    if told["quick"]:
        raise NoFigures(f"{source} is of a quick measurement, which says little: `make bench`")
    before, begin, rest = page.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoFigures(f"{page} has no lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{markdown(told)}\n{END}{after}", "utf-8")


def markdown(told: Mapping[str, Any]) -> str:
    """Return machine, table and the notes on it as Markdown."""
    m = told["machine"]
    lines = [
        f"Measured on {m['cores']} cores ({m['processor']}, {m['memory_gb']} GB), {m['kernel']},"
        f" Python {m['python']}, git {m['git']}; repositories on {m['file_system']}, databases on"
        f" {m['disk']}. Load before: {m['load_before']}. All of it took"
        f" {sum(told['took_s'].values()):.0f} s.",
        "",
        "| Row | What | Median | Spread | Ratio | Target | Met |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = rows_in(told)
    for row in rows:
        if row.target is not None:
            cells = (f"`{row.name}`", row.what, *_cells(row))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    beside = [row for row in rows if row.target is None]
    if beside:
        lines += [
            "",
            "Beside the targets, in the same run:",
            "",
            "| Row | What | Median | Spread | Ratio |",
            "|---|---|---|---|---|",
        ]
        for row in beside:
            cells = (f"`{row.name}`", row.what, *_cells(row)[:3])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    remarks = [(row.name, row.note) for row in rows if row.note]
    remarks += list(told["notes"].items())
    if remarks:
        lines += ["", *(f"- `{name}`: {note}" for name, note in remarks)]
    return "\n".join(lines) + "\n"
