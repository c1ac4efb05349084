"""Settings as people meet them: config check, show and path, and init (behaviour A5, C4)."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

import click

from chump_orchestrator import config, wiring
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.render import emit, note, table
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.settings.rules import toml
from chump_orchestrator.settings.schema import Settings, flatten, rule_of

CONSENT = """\
Agents work unattended: their permission prompts are bypassed, and what they start runs with your
rights on this machine, in worktrees of this repository. Whoever can write the backlog or the
repository decides what they are told."""


@click.group("config")
def config_command() -> None:
    """Look at the settings."""


@config_command.command("check")
@click.option("--quiet", is_flag=True, help="Say nothing when all is well.")
@everywhere
@click.pass_obj
def check_command(invocation: Invocation, *, quiet: bool) -> None:
    """Read settings and routing table; exit 78 with every error at once."""
    root, loaded = opened(invocation, aloud=not quiet)
    wait_for(partial(wiring.routes, root, loaded))
    if not quiet:
        note("settings and routing table are fine")


@config_command.command("show")
@as_json
@everywhere
@click.pass_obj
def show_command(invocation: Invocation, *, as_json: bool) -> None:
    """Print every setting and where its value comes from, secrets masked."""
    _, loaded = opened(invocation)
    rows = config.show(loaded, config.secret_values(config.environment()))
    if as_json:
        emit({"settings": [{"key": k, "value": value, "origin": o} for k, value, o in rows]})
    else:
        table(("KEY", "VALUE", "ORIGIN"), rows)


@config_command.command("path")
@everywhere
@click.pass_obj
def path_command(invocation: Invocation) -> None:
    """Print the settings files, the one that outranks the other first."""
    root = wiring.locate(invocation.repo_root, Path.cwd())
    for path in (root / config.FILE, config.user_settings_file()):
        click.echo(path)
        if not path.exists():
            note(f"{path} does not exist")


@click.command("init")
@click.option("--yes", is_flag=True, help="Consent without being asked.")
@everywhere
@click.pass_obj
def init_command(invocation: Invocation, *, yes: bool) -> None:
    """Write a settings file, and consent to unattended agents."""
    root, loaded = opened(invocation)
    path = root / config.FILE
    has_consent = loaded.settings.consent
    if not has_consent:
        has_consent = yes or _consents()
    if not path.exists():
        _write(path, _first_file(has_consent=has_consent))
        click.echo(f"wrote {path}")
    elif has_consent and not loaded.settings.consent:
        _add_consent(path, loaded)
        click.echo(f"wrote consent = true into {path}")
    else:
        click.echo(f"{path} is there already and stays as it is")
    _next_steps(root, loaded, has_consent=has_consent)


def _consents() -> bool:
    """Ask the person at the terminal; nobody there means no."""
    note(CONSENT)
    if not sys.stdin.isatty():
        note("nobody is here to be asked; --yes consents")
        return False
    return click.confirm("Do you consent, for this repository?", default=False, err=True)


def _first_file(*, has_consent: bool) -> str:
    """Return the file with every default as a comment, so that it changes nothing but consent."""
    lines = [
        "# Settings of chump-orchestrator for this repository. Commented out are the defaults; see",
        "# docs/reference/settings.md for what each key means.",
        "",
    ]
    table_name = ""
    for key, value in flatten(Settings()).items():
        name = ".".join(key[:-1])
        if name != table_name:
            # A header that is a comment, too, would put the next key that is not one elsewhere.
            lines += ["", f"[{name}]"]
            table_name = name
        rule = rule_of(key)
        text = rule.text(value) if rule else toml(value)
        if key == ("consent",) and has_consent:
            lines.append("consent = true")
        else:
            lines.append(f"# {key[-1]} = {text}")
    return "\n".join(lines) + "\n"


def _add_consent(path: Path, loaded: config.Loaded) -> None:
    origin = loaded.origins["consent"]
    if origin.kind is config.OriginKind.FILE and origin.name == str(path):
        raise ConfigError(f"{origin}: consent is false here; write consent = true instead")
    _write(path, "consent = true\n" + path.read_text("utf-8"))


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(fd, "w", encoding="utf-8") as file:  # noqa: PTH123 - mkstemp's descriptor
            file.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)  # noqa: PTH105 - the one call that says what it is for
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _next_steps(root: Path, loaded: config.Loaded, *, has_consent: bool) -> None:
    steps = []
    if not (root / loaded.settings.backlog.path).exists():
        steps.append(f"write the backlog, {loaded.settings.backlog.path}")
    steps.append("chump-orchestrator plan         # what would be dispatched")
    if not has_consent:
        steps.append("chump-orchestrator init --yes   # once you consent")
    steps.append("chump-orchestrator run          # dispatch it")
    note("next:")
    for step in steps:
        note(f"  {step}")
