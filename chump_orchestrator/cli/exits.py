"""What every ending of a command means to the shell (behaviour C3), in one place."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from enum import IntEnum

import click

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable


class ExitCode(IntEnum):
    """The exit codes of behaviour C3."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_RUNNING = 3
    NO_ANSWER = 4
    MISSING_PROGRAM = 69
    BUG = 70
    BUSY = 75
    NOT_AUTHORISED = 77
    CONFIG = 78
    INTERRUPTED = 130


class NoDaemon(Unavailable):
    """The daemon that was asked does not run, or does not answer."""


class NotAuthorised(Refused):
    """Somebody else's daemon, or folder."""


def told(name: str, command: Callable[[], object], *, is_debugging: Callable[[], bool]) -> int:
    """Run `command` and return its exit code, its number or 0; say on stderr what went wrong.

    `is_debugging` is asked when something did, and has the traceback shown.
    """
    try:
        result = command()
        sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.DONE
    except BaseException as raised:  # noqa: BLE001 - nothing lies above this
        error = _first(raised)
        if isinstance(error, BrokenPipeError):
            # Whoever read this has seen enough. What is still buffered must not raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitCode.DONE
        if is_debugging() and not isinstance(error, click.exceptions.Exit | click.ClickException):
            traceback.print_exception(raised)
        return _say(name, error)


def _say(name: str, error: BaseException) -> int:
    match error:
        case click.exceptions.Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else ExitCode.FAILED
        case click.ClickException():
            error.show()
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case _:
            pass
    code = _code_of(error)
    text = str(error)
    if code is ExitCode.BUG:
        text = f"a bug: {type(error).__name__}: {text} (--debug before the command shows where)"
    for line in text.splitlines() or [type(error).__name__]:
        click.echo(f"{name}: {line}", err=True)
    return code


def _code_of(error: BaseException) -> ExitCode:
    # Busy is wiring's own; naming it must not import wiring for a command that never did.
    wiring = sys.modules.get("chump_orchestrator.wiring")
    if wiring is not None and isinstance(error, wiring.Busy):
        return ExitCode.BUSY
    if _is_missing_program(error):
        return ExitCode.MISSING_PROGRAM
    match error:
        case ConfigError():
            return ExitCode.CONFIG
        case NoDaemon():
            return ExitCode.NO_ANSWER
        case NotAuthorised():
            return ExitCode.NOT_AUTHORISED
        case Refused() | Unavailable():
            return ExitCode.FAILED
        case _:
            return ExitCode.BUG


def _is_missing_program(error: BaseException) -> bool:
    """Say whether at the bottom of it a program could not be started as it is not there."""
    while error.__cause__ is not None:
        is_not_found = isinstance(error.__cause__, FileNotFoundError)
        # A backlog that is not there has the same cause, and is no program.
        if isinstance(error, Refused) and is_not_found and "install it" in str(error):
            return True
        error = error.__cause__
    return False


def _first(error: BaseException) -> BaseException:
    """Return the error that a task group wrapped; of several, the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
