"""Options that several commands take, and where those for all of them are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from chump_orchestrator.core.deferred import dataclass
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import SHOWN, is_gap_id, on_one_line

MOST_AGENTS = 1000
"""What the setting `max_parallel` allows, too."""

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(slots=True)
class Invocation:
    """What was given on the command line for all commands; `repo_root` of `None` is not given."""

    repo_root: Path | None = None
    debug: bool = False


class SomePath(click.Path):
    """A path that says something: an empty one would be the current directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401 - click's signature
        if not os.fspath(value).strip():
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class GapId(click.types.StringParamType):
    """The id of a gap."""

    name = "gap"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - click's signature
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401 - click's signature
        if not is_gap_id(str(value)):
            self.fail(f"{on_one_line(str(value))[:SHOWN]!r} is no gap id", param, ctx)
        return str(value)


def here() -> Path:
    """Return the current directory; `ConfigError` when it is gone."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(
            f"the current directory cannot be had: {error.strerror}; change to another,"
            " or name the repository with --repo-root and a path from the root"
        ) from error


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
            type=SomePath(),
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


backlog_option = click.option(
    "--backlog",
    type=SomePath(),
    metavar="PATH",
    help="The backlog, relative to the current directory.",
)


def choosing(command: Command) -> Command:
    """Add the options of `plan` and `run` that stand for settings (behaviour C1)."""
    for option in (
        click.option(
            "--max-parallel",
            type=click.IntRange(1, MOST_AGENTS),
            metavar="N",
            help="At most so many agents at once.",
        ),
        click.option("--base-ref", metavar="REF", help="What new branches begin from."),
        backlog_option,
    ):
        command = option(command)
    return command


def flags(
    backlog: Path | None, base_ref: str | None, max_parallel: int | None
) -> dict[str, object]:
    """Return the options of `choosing` as settings by their keys.

    A file that is named is read as it lies there, whatever ref the settings read theirs from.
    """
    return {
        "backlog.path": None if backlog is None else _absolute(backlog),
        "backlog.ref": None if backlog is None else "",
        "base_ref": base_ref,
        "max_parallel": max_parallel,
    }


def _absolute(path: Path) -> Path:
    """Return a path from the root, links left as they are."""
    return path if path.is_absolute() else Path(os.path.normpath(here() / path))


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
