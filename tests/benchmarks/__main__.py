"""Measures, prints one table and writes JSON; or writes the last figures into a page.

`python -m tests.benchmarks [--only NAME...] [--quick | --long] [--json FILE] [--write PAGE]`
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from rich.console import Console

import chump_orchestrator
from chump_orchestrator import logs
from tests.benchmarks import telling
from tests.benchmarks.measuring import Room, Row, machine

FAMILIES = (
    "start",
    "idle",
    "backlog",
    "journal",
    "pulls",
    "worktrees",
    "slots",
    "streams",
    "deadlines",
    "throughput",
    "scale",
    "crowd",
)
"""In this order: what is small before what heats the machine up."""

FIGURES = Path(".build/bench.json")
IN_MEMORY = Path("/dev/shm")


def main() -> int:
    """Do what the command line says; 1 when a family could not be measured, 2 for bad use."""
    given = _arguments()
    errors = Console(stderr=True)
    if given.write is not None:
        try:
            telling.write_into(given.write, given.json)
        except telling.NoFigures as error:
            errors.print(str(error), highlight=False)
            return 2
        return 0
    families = tuple(given.only or FAMILIES)
    memory = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
    build = Path(".build").absolute()
    build.mkdir(exist_ok=True)
    logs.configure(level="critical")
    # As an installed package is: without it, a start would be measured that nobody has.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(Path(chump_orchestrator.__file__).parent, quiet=1)
    rows: list[Row] = []
    notes: dict[str, str] = {}
    took_s: dict[str, float] = {}
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="chump-bench-", dir=memory) as fast,
        tempfile.TemporaryDirectory(prefix="bench-", dir=build) as slow,
    ):
        where = machine(Path(fast), Path(slow))
        for family in families:
            began = time.monotonic()
            room = Room(Path(fast) / family, Path(slow) / family, given.quick, given.long, notes)
            errors.print(f"{family} ...", style="dim", highlight=False, end=" ")
            try:
                rows += importlib.import_module(f"tests.benchmarks.bench_{family}").rows(room)
            except Exception:  # noqa: BLE001 - the other families are to be measured all the same
                failed.append(family)
                errors.print(traceback.format_exc(), markup=False, highlight=False)
            took_s[family] = time.monotonic() - began
            errors.print(f"{took_s[family]:.0f} s", style="dim", highlight=False)
    given.json.parent.mkdir(parents=True, exist_ok=True)
    told = telling.document(rows, where, quick=given.quick, notes=notes, took_s=took_s)
    given.json.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    telling.show(rows, Console(width=None if sys.stdout.isatty() else 200))
    if failed:
        errors.print(f"could not be measured: {', '.join(failed)}", style="bold red")
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, metavar="NAME", help="these alone")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="few rounds: does it work at all?")
    length.add_argument("--long", action="store_true", help="2,000 dispatches where there are 240")
    parser.add_argument("--json", type=Path, default=FIGURES, metavar="FILE", help="the figures")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="measure nothing; put the figures into a page"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
