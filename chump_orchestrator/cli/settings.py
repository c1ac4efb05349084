"""Settings as people meet them: config check, show and path, and init (behaviour A5, C4)."""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import stat
import sys
import tomllib
from pathlib import Path

import click

from chump_orchestrator import config, premises
from chump_orchestrator.cli.options import Invocation, as_json, everywhere
from chump_orchestrator.cli.render import emit, note, say, table
from chump_orchestrator.cli.repository import entered, located, opened
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.settings.rules import toml
from chump_orchestrator.settings.schema import Settings, flatten, rule_of
from chump_orchestrator.settings.secrets import MASK

CONSENT = """\
Agents work unattended: their permission prompts are bypassed, and what they start runs with your
rights on this machine, in worktrees of this repository. Whoever can write the backlog or the
repository decides what they are told."""


COMMENTED_OUT = re.compile(rb"(?m)^# consent = false(?=\r?$)")
"""The line in the place of which consent goes, in a file that `init` wrote."""


@click.group("config")
@everywhere
def config_command() -> None:
    """Look at the settings."""


@config_command.command("check")
@click.option("--quiet", is_flag=True, help="Say nothing when all is well.")
@everywhere
@click.pass_obj
def check_command(invocation: Invocation, *, quiet: bool) -> None:
    """Read settings and routing table; exit 78 with every error at once."""
    grounds = entered(invocation)
    wrong = grounds.wrong.splitlines()
    try:
        premises.routes_at_once(grounds.root, grounds.loaded)
    except ConfigError as error:
        wrong += str(error).splitlines()
    if not quiet:
        for notice in grounds.loaded.notices:
            note(f"note: {notice}")
    if wrong:
        raise ConfigError("\n".join(wrong))
    if not quiet:
        note("settings and routing table are fine")


@config_command.command("show")
@as_json
@everywhere
@click.pass_obj
def show_command(invocation: Invocation, *, as_json: bool) -> None:
    """Print every setting and where its value comes from, secrets masked."""
    _, loaded = opened(invocation)
    rows = config.show(loaded, config.hidden(loaded))
    secrets = config.show_secrets(loaded, config.environment())
    if as_json:
        settings = [{"key": k, "value": value, "origin": o} for k, value, o in rows]
        emit({"settings": settings, "secrets": [{"name": n, "origin": o} for n, o in secrets]})
    else:
        table(("KEY", "VALUE", "ORIGIN"), rows + [(name, MASK, o) for name, o in secrets])


@config_command.command("path")
@everywhere
@click.pass_obj
def path_command(invocation: Invocation) -> None:
    """Print the settings files, the one that outranks the other first."""
    root = located(invocation)
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
        _write(path, _first_file(has_consent=has_consent).encode(), mode=0o644)
        say(f"wrote {path}")
    elif has_consent and not loaded.settings.consent:
        _add_consent(path, loaded)
        say(f"wrote consent = true into {path}")
    else:
        say(f"{path} is there already and stays as it is")
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
        "# Settings of chump-orchestrator for this repository. Commented out are the defaults.",
        "# `chump-orchestrator config show` tells what holds and why; what each key means, the",
        "# documentation of chump-orchestrator, under Settings.",
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
    """Write consent into a file that is there, and leave everything else of it as it is."""
    origin = loaded.origins["consent"]
    if origin.kind is config.OriginKind.FILE and origin.name == str(path):
        raise ConfigError(f"{origin}: consent is false here; write consent = true instead")
    # Of a link, what it leads to is the file.
    file = path.resolve()
    before = file.read_bytes()
    mark = codecs.BOM_UTF8 if before.startswith(codecs.BOM_UTF8) else b""
    text = before.removeprefix(mark)
    end = b"\r\n" if text.partition(b"\n")[0].endswith(b"\r") else b"\n"
    ways = (COMMENTED_OUT.sub(b"consent = true", text, count=1), b"consent = true" + end + text)
    after = next(filter(_consents_there, ways), None)
    if after is None:
        raise ConfigError(f"{path}: write consent = true above its first table yourself")
    _write(file, mark + after, mode=None)


def _consents_there(data: bytes) -> bool:
    try:
        return tomllib.loads(data.decode("utf-8")).get("consent") is True
    except ValueError:
        return False


def _write(path: Path, data: bytes, *, mode: int | None) -> None:
    """Write a file whole or not at all; a `mode` of `None` keeps mode and owner it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    import tempfile  # noqa: PLC0415 - slow to import, and for `init` alone

    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        if mode is None:
            old = path.stat()
            with contextlib.suppress(OSError):  # only root may give a file away
                os.chown(temporary, old.st_uid, old.st_gid)
            mode = stat.S_IMODE(old.st_mode)
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _next_steps(root: Path, loaded: config.Loaded, *, has_consent: bool) -> None:
    steps = []
    if not (root / loaded.settings.backlog.path).exists():
        steps.append(f"write the backlog, {loaded.settings.backlog.path}")
    steps.append("chump-orchestrator plan         # what would be dispatched")
    if not has_consent:
        steps.append("chump-orchestrator init --yes   # once you consent")
    steps.append("chump-orchestrator run          # dispatch it")
    steps.append("chump-orchestrator service install   # have this machine run it")
    note("next:")
    for step in steps:
        note(f"  {step}")
