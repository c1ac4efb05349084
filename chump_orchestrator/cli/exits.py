"""What every ending of a command means to the shell (behaviour C3), in one place."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum

import click

from chump_orchestrator.cli import streams
from chump_orchestrator.core.errors import ConfigError, MissingProgram, Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line, plain


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


class Broken(Exception):
    """A broken pipe, its cause, in a coat that click does not see through."""


@contextlib.contextmanager
def kept_from_click() -> Iterator[None]:
    """Let a broken pipe pass through click, which would make of it an end with 1."""
    try:
        yield
    except BrokenPipeError as error:
        raise Broken from error


IN_THE_WAY = "something else is in its place; move it away"
NO_ACCESS = "give yourself access to it, or work where you have it"
REMEDIES = {
    errno.EACCES: (ExitCode.CONFIG, NO_ACCESS),
    errno.EPERM: (ExitCode.CONFIG, NO_ACCESS),
    errno.EROFS: (ExitCode.CONFIG, "work where something can be written"),
    errno.EEXIST: (ExitCode.CONFIG, IN_THE_WAY),
    errno.ENOTDIR: (ExitCode.CONFIG, IN_THE_WAY),
    errno.EISDIR: (ExitCode.CONFIG, IN_THE_WAY),
    errno.ELOOP: (ExitCode.CONFIG, "mend the link"),
    errno.ENAMETOOLONG: (ExitCode.CONFIG, "work in a folder with a shorter path"),
    errno.ENOENT: (ExitCode.FAILED, "it may have been there a moment ago; try again"),
    errno.EBUSY: (ExitCode.FAILED, "try again"),
    errno.ENOSPC: (ExitCode.FAILED, "make room"),
    errno.EDQUOT: (ExitCode.FAILED, "make room"),
    errno.EFBIG: (ExitCode.FAILED, "make room"),
    errno.EIO: (ExitCode.FAILED, "see whether the device is well"),
    errno.EMFILE: (ExitCode.FAILED, "allow more open files (ulimit -n)"),
    errno.ENFILE: (ExitCode.FAILED, "close some programs, and try again"),
    errno.ENOMEM: (ExitCode.FAILED, "close some programs, and try again"),
}
"""What the system may say no to through nobody's fault in here, and what helps."""

OUTPUT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE}
"""Errors which, without the name of a file, are those of writing what a command prints."""


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
        if isinstance(error, BrokenPipeError) and streams.is_reader_gone():
            # Whoever read this has seen enough. What is still buffered must not raise again.
            streams.drop_output()
            return ExitCode.DONE
        # With a standard error that takes nothing, the code still tells how it ended.
        code: int = _code_of(error)
        with contextlib.suppress(OSError):
            if is_debugging() and not isinstance(
                error, click.exceptions.Exit | click.ClickException
            ):
                import traceback  # noqa: PLC0415 - seldom needed

                traceback.print_exception(raised)
            _say(name, error, code)
        if _is_of_output(error):
            streams.drop_output()
        return code


def _say(name: str, error: BaseException, code: int) -> None:
    match error:
        case click.ClickException():
            error.show()
            return
        case click.exceptions.Exit() | SystemExit() | click.Abort() | KeyboardInterrupt():
            return
        case OSError() if code != ExitCode.BUG:
            text = _trouble(error)
        case _:
            text = str(error)
    if code == ExitCode.BUG:
        text = f"a bug: {type(error).__name__}: {text} (--debug before the command shows where)"
    for line in text.splitlines() or [type(error).__name__]:
        click.echo(f"{name}: {plain(line)}", err=True)


def _trouble(error: OSError) -> str:
    """Return what the system said no to, and what helps."""
    where = "standard output" if _is_of_output(error) else on_one_line(str(error.filename))
    what = os.strerror(error.errno or 0)
    _, remedy = REMEDIES.get(error.errno or 0, (0, ""))
    return "; ".join(filter(None, (f"{where}: {what}", remedy)))


def _is_of_output(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.filename is None and error.errno in OUTPUT


def _code_of(error: BaseException) -> int:
    # Naming Busy must not import what it takes to be busy for a command that never did.
    premises = sys.modules.get("chump_orchestrator.premises")
    if premises is not None and isinstance(error, premises.Busy):
        return ExitCode.BUSY
    if _is_missing_program(error):
        return ExitCode.MISSING_PROGRAM
    match error:
        case click.exceptions.Exit() | click.ClickException():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else ExitCode.FAILED
        case click.Abort() | KeyboardInterrupt():
            return ExitCode.INTERRUPTED
        case ConfigError():
            return ExitCode.CONFIG
        case NoDaemon():
            return ExitCode.NO_ANSWER
        case NotAuthorised():
            return ExitCode.NOT_AUTHORISED
        case Refused() | Unavailable():
            return ExitCode.FAILED
        case OSError() if _is_of_output(error):
            return ExitCode.FAILED
        case OSError() if error.filename is not None and error.errno in REMEDIES:
            return REMEDIES[error.errno][0]
        case _:
            return ExitCode.BUG


def _is_missing_program(error: BaseException | None) -> bool:
    """Say whether at the bottom of it a program could not be started as it is not there."""
    while error is not None and not isinstance(error, MissingProgram):
        error = error.__cause__
    return error is not None


def _first(error: BaseException) -> BaseException:
    """Return the error that a task group wrapped; of several, the first."""
    while isinstance(error, BaseExceptionGroup | Broken):
        inner = error.__cause__ if isinstance(error, Broken) else error.exceptions[0]
        if inner is None:
            break
        error = inner
    return error
