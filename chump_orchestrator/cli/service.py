"""The daemon as a service of the machine: install, uninstall, status, print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from chump_orchestrator import config
from chump_orchestrator.cli import client, service_dialog
from chump_orchestrator.cli.exits import ExitCode, NoDaemon, NotAuthorised
from chump_orchestrator.cli.options import Invocation, SomePath, as_json, everywhere
from chump_orchestrator.cli.render import emit, instant, note, table
from chump_orchestrator.cli.repository import entered, wait_for
from chump_orchestrator.cli.service_site import Site, Wish
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.premises import control_path
from chump_orchestrator.service.survey import survey
from chump_orchestrator.service.targets import drift, path_in

Command = TypeVar("Command", bound=Callable[..., Any])


def scoped(command: Command) -> Command:
    """Add the options that say whose service manager is meant."""
    for option in (
        click.option(
            "--system",
            "scope",
            flag_value="system",
            help="The machine's; by default root's choice.",
        ),
        click.option(
            "--user", "scope", flag_value="user", default=None, help="Your own service manager."
        ),
    ):
        command = option(command)
    return command


as_user = click.option(
    "--as", "user", metavar="USER", help="Whom a system unit runs as; the repository's owner."
)
more_folders = click.option(
    "--path",
    "folders",
    type=SomePath(),
    multiple=True,
    metavar="DIR",
    help="A folder to be on the service's PATH, ahead of all others; repeatable.",
)
dry = click.option("--dry-run", is_flag=True, help="Show everything, and change nothing.")


@click.group("service")
@everywhere
def service_command() -> None:
    """Have the daemon started and kept up by the machine."""


@service_command.command("install")
@scoped
@as_user
@more_folders
@click.option("--linger/--no-linger", default=None, help="Run without anybody logged in, or not.")
@click.option("--no-pause", is_flag=True, help="Dispatch from the first start on.")
@dry
@click.option("--yes", is_flag=True, help="Agree to whatever would be asked.")
@click.option("--force", is_flag=True, help="Overwrite also what was changed by hand.")
@everywhere
@click.pass_obj
def install_command(
    invocation: Invocation,
    *,
    scope: str | None,
    user: str | None,
    folders: tuple[Path, ...],
    linger: bool | None,
    no_pause: bool,
    dry_run: bool,
    yes: bool,
    force: bool,
) -> int:
    """Install and start the service of this repository."""
    site = Site.found(invocation, Wish(scope, user, folders))
    choices = service_dialog.Choices(
        linger=linger, pauses=not no_pause, dry_run=dry_run, yes=yes, force=force
    )
    return service_dialog.install(site, choices)


@service_command.command("uninstall")
@scoped
@click.option("--keep-agents", is_flag=True, help="Leave agents running, under their shims.")
@dry
@click.option("--yes", is_flag=True, help="Agree to whatever would be asked.")
@everywhere
@click.pass_obj
def uninstall_command(
    invocation: Invocation, *, scope: str | None, keep_agents: bool, dry_run: bool, yes: bool
) -> int:
    """Stop and remove the service of this repository."""
    site = Site.installed(invocation, Wish(scope))
    choices = service_dialog.Choices(dry_run=dry_run, yes=yes)
    return service_dialog.uninstall(site, choices, keep_agents=keep_agents)


@service_command.command("print")
@scoped
@as_user
@more_folders
@everywhere
@click.pass_obj
def print_command(
    invocation: Invocation, *, scope: str | None, user: str | None, folders: tuple[Path, ...]
) -> None:
    """Print the unit as it would be installed."""
    site = Site.found(invocation, Wish(scope, user, folders), must_run=False)
    unit, *_ = site.target.units(site.survey(), site.program)
    click.echo(unit.text, nl=False)
    note(f"# {site.target.folder / unit.name}")


@service_command.command("status")
@scoped
@as_json
@everywhere
@click.pass_obj
def status_command(invocation: Invocation, *, scope: str | None, as_json: bool) -> int:
    """Show how the service of this repository fares; exit 3 unless it is up and ready."""
    site = Site.installed(invocation, Wish(scope))
    target, root = site.target, site.root
    state = wait_for(partial(target.state, root))
    file = target.file(root)
    text = file.read_text("utf-8", "replace") if file.exists() else ""
    drifted: tuple[str, ...] | None = ()
    if text and not site.is_visible:
        drifted = None
    elif text:
        try:
            seen = site.survey(path=path_in(text))
            drifted = drift(target, root, seen, site.program, state)
        except (ConfigError, Refused, Unavailable) as error:
            drifted = (str(error),)
    document = {
        "unit": file.stem if file.suffix == ".plist" else file.name,
        "file": str(file),
        "installed": bool(text),
        "scope": "user" if target.is_user else "system",
        **{k: v for k, v in asdict(state).items() if k not in ("since", "needs_reload")},
        "ready": state.ready,
        "since": state.since and instant(state.since),
        "linger": target.lingers if target.can_linger else None,
        "drift": None if drifted is None else list(drifted),
        "daemon": _daemon(site),
    }
    if as_json:
        emit(document)
    else:
        _show(document)
    return ExitCode.DONE if state.ready else ExitCode.NOT_RUNNING


def _daemon(site: Site) -> str | None:
    """Return what the daemon says of itself; `None` when none answers, or it is another's."""
    try:
        loaded, _ = config.salvage(site.root)
        status = client.ask(control_path(site.root, loaded), "status")["status"]
    except (NoDaemon, NotAuthorised, ConfigError, Refused, Unavailable):
        return None
    return str(status["daemon"]["state"])


def _show(document: dict[str, Any]) -> None:
    words = {
        "unit": document["unit"],
        "file": document["file"] if document["installed"] else "not installed",
        "enabled": document["enabled"] or "no",
        "state": " ".join(
            filter(None, (document["active"], document["sub"] and f"({document['sub']})"))
        )
        or "-",
        "ready": "yes" if document["ready"] else "no",
        "pid": document["pid"] or "-",
        "since": document["since"] or "-",
        "says": document["says"] or "-",
        "daemon": document["daemon"] or "-",
        "restarts": document["restarts"],
        "result": document["result"] or "-",
        "linger": {True: "yes", False: "no", None: "-"}[document["linger"]],
    }
    words |= {"drop-in": " ".join(document["drop_ins"])} if document["drop_ins"] else {}
    told = document["drift"]
    drifted = ["only its user and root can tell"] if told is None else told or ["none"]
    table(("WHAT", "HOW"), [*words.items(), *(("drift", one) for one in drifted)])
    if not document["installed"]:
        note("`chump-orchestrator service install` installs it")


@service_command.command("survey", hidden=True)
@click.option("--path", "folders", multiple=True)
@click.option("--unseen", multiple=True)
@everywhere
@click.pass_obj
def survey_command(
    invocation: Invocation, folders: tuple[str, ...], unseen: tuple[str, ...]
) -> None:
    """Print what a service of this user would find here; for `install --system`, as that user."""
    grounds = entered(invocation)
    environ = config.environment(grounds.loaded)
    look = partial(
        survey, grounds.root, grounds.loaded, grounds.wrong, environ, more=folders, unseen=unseen
    )
    click.echo(wait_for(look).to_json())
