"""Options that several commands take, and where those for all of them are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Invocation:
    """What was given on the command line for all commands; `repo_root` of `None` is not given."""

    repo_root: Path | None = None
    debug: bool = False


def everywhere(command: Command) -> Command:
    """Add the options that every command takes, before and behind its name."""
    for option in (
        click.option(
            "--debug",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Show where an error comes from.",
        ),
        click.option(
            "--repo-root",
            type=click.Path(path_type=Path),
            metavar="PATH",
            expose_value=False,
            callback=_keep,
            help="The repository; by default the one around the current directory.",
        ),
    ):
        command = option(command)
    return command


def _keep(context: click.Context, option: click.Parameter, value: object) -> None:
    if value and option.name is not None:
        setattr(context.ensure_object(Invocation), option.name, value)


def choosing(command: Command) -> Command:
    """Add the options of `plan` and `run` that stand for settings (behaviour C1)."""
    for option in (
        click.option(
            "--max-parallel", type=int, metavar="N", help="At most so many agents at once."
        ),
        click.option("--base-ref", metavar="REF", help="What new branches begin from."),
        click.option(
            "--backlog",
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="The backlog, relative to the current directory.",
        ),
    ):
        command = option(command)
    return command


def flags(
    backlog: Path | None, base_ref: str | None, max_parallel: int | None
) -> dict[str, object]:
    """Return the options of `choosing` as settings by their keys."""
    return {
        "backlog.path": None if backlog is None else Path(os.path.abspath(backlog)),  # noqa: PTH100 - a link stays one
        "base_ref": base_ref,
        "max_parallel": max_parallel,
    }


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
