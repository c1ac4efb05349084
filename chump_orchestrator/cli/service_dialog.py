"""Installing and removing the service: what is shown, what is asked, and what is then done."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import click

from chump_orchestrator.adapters import process
from chump_orchestrator.adapters.host import HostClock
from chump_orchestrator.cli.exits import ExitCode, NotAuthorised
from chump_orchestrator.cli.render import note, say
from chump_orchestrator.cli.repository import wait_for
from chump_orchestrator.cli.service_site import ROOT, Site
from chump_orchestrator.core.errors import ConfigError, MissingProgram, Refused, Unavailable
from chump_orchestrator.core.gap import plain
from chump_orchestrator.premises import Busy
from chump_orchestrator.service.difference import Kind, compared, unified
from chump_orchestrator.service.naming import SLICE
from chump_orchestrator.service.programs import is_cached
from chump_orchestrator.service.state import State
from chump_orchestrator.service.steps import Await, Run, Step, Write, carry_out
from chump_orchestrator.service.survey import Survey
from chump_orchestrator.service.systemd import Systemd

PAUSE_REASON = "first start as a service: see `plan`, then `resume`"
PLAN_LIMIT = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Choices:
    """What was decided on the command line; a `linger` of `None` is to be asked."""

    linger: bool | None = None
    pauses: bool = True
    dry_run: bool = False
    yes: bool = False
    force: bool = False


def install(site: Site, choices: Choices) -> int:
    """Install the service and start it, or show what that would do; returns the exit code."""
    target = site.target
    if not choices.dry_run:
        _require_root(site, "install")
    seen = site.survey()
    state = wait_for(partial(target.state, site.root))
    _object(site, seen, state, choices)
    units = target.units(seen, site.program)
    if wrong := wait_for(partial(target.verify, units)):
        raise ConfigError("\n".join(("the service manager objects to the unit:", *wrong)))
    writes = [
        write
        for unit in units
        if (write := _write(target.folder / unit.name, unit.text, choices)) is not None
    ]
    is_first = not target.file(site.root).exists()
    linger = _lingers(site, choices)
    if not target.is_reachable and not linger and not choices.dry_run:
        raise MissingProgram(
            f"no service manager of {site.identity.name} is running: log in, or give --linger to"
            " have one from boot on"
        )
    pause = is_first and choices.pauses and not seen.paused
    before = [Run(site.command("pause", PAUSE_REASON), site.environ())] if pause else []
    is_current = not writes and state.ready and bool(state.enabled) and not linger
    steps = (
        []
        if is_current
        else target.installing(writes, seen, before_start=before, linger=linger, state=state)
    )
    if choices.dry_run:
        _show(steps)
        _tell_lacking(seen)
        return ExitCode.DONE
    if is_current:
        say(f"{target.file(site.root).name} is installed, up to date, and runs")
        return ExitCode.DONE
    _carry_out(site, steps)
    return _account(site, seen, is_paused=pause or seen.paused)


def uninstall(site: Site, choices: Choices, *, keep_agents: bool) -> int:
    """Stop the service and remove it, or show what that would do; returns the exit code."""
    target, file = site.target, site.target.file(site.root)
    if not file.exists():
        say(f"{file.name} is not installed")
        return ExitCode.DONE
    if not choices.dry_run:
        _require_root(site, "uninstall")
    state = wait_for(partial(target.state, site.root))
    steps = target.removing(site.root, keep_agents=keep_agents, state=state)
    if choices.dry_run:
        _show(steps)
        return ExitCode.DONE
    if state.is_active and not keep_agents:
        question = "The daemon ends, and its agents with it as `stop.on_signal` says. Go on?"
        if not _agrees(question, choices, default=False):
            note("nothing was changed; --keep-agents leaves them running")
            return ExitCode.FAILED
    _carry_out(site, steps)
    say(f"{file.name} is removed")
    if keep_agents or not state.pid:
        _tell_left(site)
    drop_ins = file.with_name(f"{file.name}.d")
    if drop_ins.is_dir():
        note(f"{drop_ins} stays as it is")
    if target.can_linger and target.lingers:
        note(f"{target.user} still lingers; `loginctl disable-linger {target.user}` ends that")
    return ExitCode.DONE


def _tell_left(site: Site) -> None:
    """Say so where agents live on without a daemon."""
    try:
        running = site.survey().running
    except (ConfigError, Refused, Unavailable):
        return  # nothing is left to be asked
    if running:
        note(f"{running} agents go on under their shims; `chump-orchestrator run` takes them up")


def _require_root(site: Site, verb: str) -> None:
    """Raise `NotAuthorised` where the machine's own manager is to be changed by somebody else."""
    if not site.target.is_user and os.geteuid() != ROOT:
        command = shlex.join((*site.program, "service", verb, "--system"))
        raise NotAuthorised(
            f"a system unit is root's to {verb}; as root, run `{command} --repo-root {site.root}`"
        )


def _object(site: Site, seen: Survey, state: State, choices: Choices) -> None:
    """Raise what keeps the service from being installed, or from being of use."""
    if seen.wrong:
        raise ConfigError(seen.wrong)
    if seen.missing:
        raise MissingProgram("\n".join(seen.missing))
    if is_cached(Path(site.program[0])) and not choices.force:
        raise ConfigError(
            f"{site.program[0]} lies in a cache or a temporary folder, and would be gone some day;"
            " install chump-orchestrator for good, with pipx for one, or give --force"
        )
    if site.identity.uid == ROOT and not choices.force:
        raise ConfigError(
            "agents would act unattended as root; give the repository to a user of its own and"
            " name it with --as USER, or give --force"
        )
    if (other := _other(site)) is not None:
        raise ConfigError(
            f"{other} serves this repository already; remove that first, with `service uninstall`"
        )
    if seen.holder and not state.is_active:
        who = f"pid {seen.holder}" if seen.holder > 0 else "of unknown pid"
        raise Busy(
            f"a daemon works on {seen.root} already ({who}), not started by this service; end it"
            " first, with SIGUSR1 if its agents are to go on"
        )


def _other(site: Site) -> Path | None:
    """Return the unit of this repository with the other manager, the machine's or the user's."""
    if not isinstance(site.target, Systemd):
        return None
    environ = {"HOME": site.identity.home}
    other = replace(site.target, is_user=not site.target.is_user, environ=environ)
    file = other.file(site.root)
    return file if file.exists() else None


def _write(path: Path, text: str, choices: Choices) -> Write | None:
    """Return how a file is to be written, asking where something would be lost.

    `None` when it is there as it should be, or is to stay as it is.
    """
    kind, there = compared(path, text)
    if kind is Kind.SAME:
        return None
    if kind is Kind.ABSENT:
        return Write(path, text)
    if path.name == SLICE and kind is not Kind.OURS and not choices.force:
        note(f"{path} was changed by hand, and stays as it is")
        return None
    click.echo(plain(unified(path, there, text)), nl=False)
    if choices.dry_run:
        return Write(path, text, there)
    if kind is Kind.OURS:
        agrees = _agrees(f"Overwrite {path}?", choices, default=True)
    else:
        note(
            f"{path} was changed by hand: what you have changed would be lost; move it to a drop-in"
        )
        agrees = choices.force or _asks(f"Overwrite {path}?", default=False)
    if not agrees:
        hint = "--yes" if kind is Kind.OURS else "--force"
        raise Refused(
            f"{path} differs and was not overwritten, nothing was changed; {hint} does it"
        )
    return Write(path, text, there)


def _lingers(site: Site, choices: Choices) -> bool:
    """Whether lingering is to be enabled, asking where it was not said."""
    target = site.target
    if not target.can_linger or target.lingers or choices.linger is False:
        return False
    if choices.linger or choices.yes:
        return True
    if choices.dry_run:
        note(f"{site.identity.name} would be asked whether the service runs without a login")
        return False
    if not sys.stdin.isatty():
        note(
            f"the service runs while {site.identity.name} is logged in only; --linger has it run"
            " from boot on"
        )
        return False
    return _asks("Run it from boot on, also while you are not logged in (lingering)?", default=True)


def _agrees(question: str, choices: Choices, *, default: bool) -> bool:
    return choices.yes or choices.force or _asks(question, default=default)


def _asks(question: str, *, default: bool) -> bool:
    """Ask the person at the terminal; nobody there means no."""
    if not sys.stdin.isatty():
        return False
    return click.confirm(question, default=default, err=True)


def _show(steps: Sequence[Step]) -> None:
    """Print what would be done, new files whole; those that change were shown as they do."""
    for step in steps:
        if isinstance(step, Write) and not step.before:
            click.echo(plain(unified(step.path, "", step.text)), nl=False)
    for step in steps:
        click.echo(plain(str(step)))
    if not steps:
        click.echo("nothing to do")
    note("this is what would be done; nothing was changed")


def _carry_out(site: Site, steps: Iterable[Step]) -> None:
    for step in steps:
        note(str(step))
        if isinstance(step, Run) and step.meanwhile:
            note(f"  {step.meanwhile}")
        since = HostClock().now()
        try:
            said = wait_for(partial(carry_out, step))
        except (Refused, Unavailable) as error:
            raise type(error)(_with_last_words(site, step, str(error), since)) from error
        if said:
            note(f"note: {said}")


def _with_last_words(site: Site, step: Step, text: str, since: datetime) -> str:
    """Add to an error what the service itself had to say, where it was to start."""
    starts = isinstance(step, Await) or (
        isinstance(step, Run) and bool({"start", "restart", "bootstrap"} & set(step.argv))
    )
    if not starts:
        return text
    words = wait_for(partial(site.target.last_words, site.root, since))
    hint = "mend that, then give the same command again; `service uninstall` takes it away"
    return "\n".join(filter(None, (text, plain(words), hint)))


def _account(site: Site, seen: Survey, *, is_paused: bool) -> int:
    """Say how the service fares, and what is next; returns the exit code."""
    target = site.target
    state = wait_for(partial(target.state, site.root))
    name = target.file(site.root).name
    say(
        f"{name} is {state.active or 'not known'}, pid {state.pid}{state.says and ': '}{state.says}"
    )
    note(f"its log: {target.log_command(site.root)}")
    _tell_lacking(seen)
    _plan(site)
    if is_paused:
        note("nothing is dispatched yet; to begin: chump-orchestrator resume")
    return ExitCode.DONE if state.ready else ExitCode.FAILED


def _tell_lacking(seen: Survey) -> None:
    """Name what agents would be given here, and are not given by the service."""
    for variable in seen.lacking:
        note(f"note: {variable} is set in this shell, and the service does not have it")
    if seen.lacking:
        note("      what agents need of these belongs into .chump/secrets.env or a drop-in")


def _plan(site: Site) -> None:
    """Put on the screen what would be dispatched."""
    run = partial(
        process.run, site.command("plan"), cwd="/", env=site.environ(), timeout=PLAN_LIMIT
    )
    try:
        done = wait_for(run)
    except (Refused, Unavailable) as error:
        note(f"note: {error}")
        return
    note(done.err.decode("utf-8", "replace"))
    click.echo(plain(done.out.decode("utf-8", "replace")), nl=False)
